"""Sets of runs for `effnet-jax sweep`, each file a function that yields them.

`get_sweep(config, argument)` takes the experiment's config and what follows the sweep's name and a
colon ("" where nothing does), and yields `effnet_jax.sweeps.runs.Run`.
"""
