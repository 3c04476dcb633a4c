"""Commands: python -m effnet_jax.tools.NAME."""

# First of all, since it makes settings that JAX reads when it is imported.
from effnet_jax import cli  # noqa: F401
