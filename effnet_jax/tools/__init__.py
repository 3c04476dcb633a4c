"""Commands: effnet-jax NAME, or python -m effnet_jax NAME."""
