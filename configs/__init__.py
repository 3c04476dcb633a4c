"""Experiments, one file each; effnet_jax/config.py explains every key."""
