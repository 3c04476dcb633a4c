"""Sweeps: many runs of one experiment, scheduled, launched and collected in one table."""
