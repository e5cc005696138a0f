"""What to do about a signal: the pure decision with its rails, the state it leans on, the directives that carry it."""
