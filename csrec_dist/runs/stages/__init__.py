"""The work of each stage of a run, from files to files; every rank calls the same functions in the same order."""
