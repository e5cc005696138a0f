"""What is strange? One file an idea, judged on blocks or reports of one log; no clock, no I/O."""
