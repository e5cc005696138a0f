"""The command line as a user has it, and a whole Palisade on the embedded broker."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from palisade.cli import main as cli
from palisade.cli import options
from palisade.dev import DevStack, prepare, start_broker, start_roles
from palisade.supervisor import Supervisor
from schemas.config import EndpointConfig, PalisadeConfig

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def palisade(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `palisade WORDS...` in this process; gives exit status, output, errors."""
    monkeypatch.setattr(options.console, "_width", 220)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["palisade", *map(str, words)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        out, errors = capsys.readouterr()
        return status, out, errors

    return run


class Stack:
    """A running Palisade. `ended`: children that ended, which none should."""

    def __init__(self, stack: DevStack, supervisor: Supervisor, ended: list[tuple[str, int]]) -> None:
        self.dev = stack
        self.supervisor = supervisor
        self.ended = ended
        self.config = stack.config_path


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Broker and roles as processes of their own, one partition, endpoint `credit`; nothing is left afterwards."""
    folder: Path = tmp_path_factory.mktemp("dev")
    ended: list[tuple[str, int]] = []
    config = PalisadeConfig(endpoints=(EndpointConfig(name="credit"),)).model_copy(
        update={"kafka": PalisadeConfig().kafka.model_copy(update={"partitions": 1})}
    )
    with Supervisor(folder / "logs", on_exit=lambda name, code: ended.append((name, code))) as supervisor:
        bootstrap = start_broker(supervisor, 1)
        dev = prepare(folder, config, None, bootstrap, embedded=True)
        start_roles(supervisor, dev)
        yield Stack(dev, supervisor, ended)
