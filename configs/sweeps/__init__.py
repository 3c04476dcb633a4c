"""Sets of runs, each file a function that yields them: python -m effnet_jax.tools.sweep.

`get_sweep(config, argument)` takes the experiment's config and what follows the sweep's name and a
colon ("" where nothing does), and yields `effnet_jax.sweeps.schedule.Run`.
"""
