"""From a raw log to a prepared dataset, and from a prepared dataset to batches."""
