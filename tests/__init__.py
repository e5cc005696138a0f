"""Tests of everything. numpy is read with one thread, as the workers read it: threads that spin for each other take two cores."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
