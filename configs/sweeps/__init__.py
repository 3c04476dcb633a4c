"""Sweeps for `effnet-jax sweep`, one file each.

`get_sweep(config, argument)` gets the config of the experiment and the text after NAME and a colon,
by default "". It yields runs, `effnet_jax.sweeps.runs.Run`.
"""
