"""Runs: a folder, its records, and the stages from a raw log to a distilled student."""
