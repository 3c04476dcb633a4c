"""From records to uint8 batches on the CPU. Knows no model."""
