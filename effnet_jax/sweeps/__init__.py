"""Many runs of one experiment: scheduled, launched, collected into one table."""
