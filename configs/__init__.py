"""One file per experiment; default.py holds every key with its meaning."""
