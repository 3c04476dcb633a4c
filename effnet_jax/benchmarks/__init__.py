"""Timings of this machine: each file measures one thing and gives rows for results/."""
