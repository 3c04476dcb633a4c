"""Commands: python -m effnet_jax.tools.NAME."""
