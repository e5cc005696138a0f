"""The checker: the history of a run, and the invariants that must hold on it.

`history` is what a run left behind, as columns; `invariants` judges it; `collect` makes it from a live or finished run.
The judges know nothing of how the product decides: they count for themselves.
"""
