"""Research tooling on top of the library: grids of runs, and simulated logs."""
