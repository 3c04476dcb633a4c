"""From records to uint8 batches on the host. Knows no model."""
