"""From stored examples to batches on the device."""
