"""The tests; a package, so that its modules are imported by one name in every process."""
