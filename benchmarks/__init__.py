"""Studies of speed, scale, recipes and faults, run by hand; results in docs/benchmarks.md."""
