"""Many runs of one experiment: planned, launched, collected into one table."""
