"""The service that `test_prefork.py` runs under gunicorn: made in the parent, called in the workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from palisade_client import Guard

guard = Guard("prefork", fallback=0.5, bootstrap=os.environ["TEST_BOOTSTRAP"])
if os.environ.get("TEST_CALL_BEFORE_FORK"):
    guard.call(lambda features: 0.9, {"x": 1.0}, caller="parent")


@guard
def predict(features: dict[str, float], *, caller: str) -> float:
    return 0.9


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answers with its process id and one prediction."""
    answer = f"{os.getpid()} {predict({'x': 1.0}, caller='client')}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]
