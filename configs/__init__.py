"""One file for each experiment; effnet_jax/config.py has every key with its meaning."""
