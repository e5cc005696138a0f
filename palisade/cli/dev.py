"""`palisade dev`: the whole of Palisade on this machine, with an embedded broker and an embedded ClickHouse."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from palisade.cli.options import console
from palisade.dev import DEFAULT_FOLDER, DevStack, prepare, start_broker, start_roles
from palisade.settings import read_yaml
from palisade.supervisor import Supervisor
from schemas.config import EndpointConfig, PalisadeConfig
from schemas.errors import ConfigError

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
    base = _base(config, endpoint or [])
    policy = config.parent / base.policy if config is not None and base.policy is not None else None
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with Supervisor(folder / "logs", on_exit=_say_exit) as supervisor:
        bootstrap = kafka or start_broker(supervisor, base.kafka.partitions)
        stack = prepare(folder, base, policy, bootstrap, embedded=kafka is None)
        with console.status("starting audit, detect, respond"):
            start_roles(supervisor, stack)
        _welcome(stack, base)
        try:
            while not stop.wait(1.0):
                pass
        except KeyboardInterrupt:
            pass
        with console.status("stopping"):
            (folder / "running.json").unlink(missing_ok=True)
            supervisor.stop()


def _base(config: Path | None, endpoints: list[str]) -> PalisadeConfig:
    if config is None and Path("palisade.yaml").exists() and not endpoints:
        config = Path("palisade.yaml")
    if config is not None:
        return read_yaml(config, PalisadeConfig)
    if not endpoints:
        raise ConfigError("which endpoints? Write a palisade.yaml here, or name them: palisade dev --endpoint credit")
    return PalisadeConfig(endpoints=tuple(EndpointConfig(name=name) for name in endpoints))


def _say_exit(name: str, code: int) -> None:
    console.print(f"[yellow]{name} ended with {code}; starting it again[/]")


def _welcome(stack: DevStack, config: PalisadeConfig) -> None:
    console.print(
        f"[bold green]Palisade runs[/] on {stack.bootstrap} for {', '.join(e.name for e in config.endpoints)}"
    )
    if stack.embedded:
        console.print(f"[dim]{LIMITS}[/]")
    console.print("\nIn the environment of your serving process:")
    for name, value in stack.client_env.items():
        console.print(f"  export {name}={value}", soft_wrap=True)
    console.print(
        "\nIn another terminal, in this folder: palisade status · palisade publish FILE --endpoint NAME · palisade forensics timeline"
    )
    console.print(f"Logs in {stack.folder / 'logs'}. Ctrl-C stops everything.")
