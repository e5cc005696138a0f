"""F1 to F16: faults of our own stack at real processes, each proven by the checker. `make test-faults` runs them at length."""
