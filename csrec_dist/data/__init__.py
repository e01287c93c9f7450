"""From a raw log to a prepared dataset, and from a prepared dataset to batches."""

BAD_ROWS = "bad_rows.jsonl"
"""In a dataset's folder: one JSON object for each of the first rows that `on_bad_rows: skip` left out."""
