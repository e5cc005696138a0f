"""The client installs and runs alone in an empty environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "client"
PROGRAM = """
import importlib.util, sys
from palisade_client import Guard
from palisade_client.asgi import PalisadeMiddleware
from palisade_client.testing import FakeTransport, ThrowawayKey, directive

for other in ("schemas", "streams", "detectors", "responders", "palisade", "pydantic", "numpy", "pyarrow", "faust"):
    assert importlib.util.find_spec(other) is None, other
key, transport = ThrowawayKey(), FakeTransport()
guard = Guard("credit", fallback=0.5, directive_keys=key.public, transport=transport)
assert [guard.call(lambda features: 0.9, {"x": 1.0}, caller="a") for _ in range(10)] == [0.9] * 10
transport.deliver(directive("credit", key, route="fallback"))
assert guard.call(lambda features: 0.9, {"x": 1.0}, caller="a") == 0.5
guard.flush()
assert len(transport.predictions) == 11 and transport.reports[-1]["epoch_applied"] == 1
real = Guard("credit", bootstrap="127.0.0.1:1")
assert real.call(lambda features: 0.9, {"x": 1.0}, caller="a") == 0.9
print("alone")
"""


@pytest.mark.slow
def test_the_client_installs_and_runs_alone(tmp_path: Path) -> None:
    source = shutil.copytree(
        CLIENT, tmp_path / "client", ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
    )
    venv.create(tmp_path / "empty")
    python = tmp_path / "empty" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check", source],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if installed.returncode and "Could not find a version" in installed.stderr + installed.stdout:
        pytest.skip("no package index can be reached")
    assert installed.returncode == 0, installed.stderr
    ran = subprocess.run(
        [python, "-I", "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "alone"
