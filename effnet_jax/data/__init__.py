"""Turns the records of data sets into uint8 batches on the CPU, independently of the model."""
