"""`palisade dev`: the whole of Palisade on this machine, with an embedded broker and an embedded ClickHouse."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from palisade.cli.options import console
from palisade.dev import DEFAULT_FOLDER, DevStack, prepare, refuse_second, start_broker, start_roles
from palisade.settings import read_yaml
from palisade.supervisor import Supervisor
from schemas.config import EndpointConfig, PalisadeConfig
from schemas.errors import ConfigError, PalisadeError

LIMITS = (
    "The embedded broker keeps 5 MiB a partition in memory, compacts nothing and dies with this process: "
    "for trying things, not for production."
)


def register(app: typer.Typer) -> None:
    app.command("dev")(dev)


def dev(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="palisade.yaml to start from")] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option(help="name of an endpoint, when there is no palisade.yaml")
    ] = None,
    kafka: Annotated[
        str | None, typer.Option(help="use this broker instead of the embedded one (topics must exist)")
    ] = None,
    folder: Annotated[Path, typer.Option(help="where keys, state, logs and the audit lie")] = DEFAULT_FOLDER,
) -> None:
    """Runs broker, detect, respond and audit as processes of their own until Ctrl-C, and restarts any that dies."""
    refuse_second(folder)
    path, base = _base(config, endpoint or [])
    policy = path.parent / base.policy if path is not None and base.policy is not None else None
    home = path.parent if path is not None else Path()
    ending = _Ending()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, ending.asked)
    with Supervisor(folder / "logs", on_exit=ending.child_ended) as supervisor:
        bootstrap = kafka or start_broker(supervisor, base.kafka.partitions)
        stack = prepare(folder, base, policy, bootstrap, embedded=kafka is None, config_home=home)
        with console.status("starting audit, detect, respond"):
            start_roles(supervisor, stack)
        _welcome(stack, base)
        ending.now.wait()
        with console.status("stopping"):
            (folder / "running.json").unlink(missing_ok=True)
            supervisor.stop()
    if ending.broker_died:
        raise PalisadeError(f"the embedded broker ended, and its records with it; see {folder / 'logs' / 'broker.log'}")


class _Ending:
    """Why dev ends: asked by a signal, or the broker is gone. A role that ends is started again by the supervisor."""

    def __init__(self) -> None:
        self.now = threading.Event()
        self.broker_died = False

    def asked(self, *_: object) -> None:
        self.now.set()

    def child_ended(self, name: str, code: int) -> None:
        if name == "broker":
            self.broker_died = not self.now.is_set()
            self.now.set()
        elif not self.now.is_set():
            console.print(f"[yellow]{name} ended with {code}; starting it again[/]")


def _base(config: Path | None, endpoints: list[str]) -> tuple[Path | None, PalisadeConfig]:
    if config is None and Path("palisade.yaml").exists() and not endpoints:
        config = Path("palisade.yaml")
    if config is not None:
        return config, read_yaml(config, PalisadeConfig)
    if not endpoints:
        raise ConfigError("which endpoints? Write a palisade.yaml here, or name them: palisade dev --endpoint credit")
    return None, PalisadeConfig(endpoints=tuple(EndpointConfig(name=name) for name in endpoints))


def _welcome(stack: DevStack, config: PalisadeConfig) -> None:
    console.print(
        f"[bold green]Palisade runs[/] on {stack.bootstrap} for {', '.join(e.name for e in config.endpoints)}"
    )
    if stack.embedded:
        console.print(f"[dim]{LIMITS}[/]")
        console.print(
            "[dim]It starts empty each time: activate profiles again. The audit of the last run is beside the new one.[/]"
        )
    console.print("\nIn the environment of your serving process:")
    for name, value in stack.client_env.items():
        console.print(f"  export {name}={value}", soft_wrap=True)
    console.print(
        "\nIn another terminal, in this folder: palisade status · palisade publish FILE --endpoint NAME · palisade forensics timeline"
    )
    console.print(f"Logs in {stack.folder / 'logs'}. Ctrl-C stops everything.")
