"""`palisade dev`: the whole of Palisade on this machine, with an embedded broker and an embedded ClickHouse."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from palisade.cli.options import console, quiet, say_error
from palisade.running import DEFAULT_FOLDER, RUNNING, announce, refuse_second

if TYPE_CHECKING:
    from palisade.dev import DevStack
    from palisade.supervisor import Supervisor
    from schemas.config import PalisadeConfig

LIMITS = (
    "The embedded broker keeps 5 MiB a partition in memory, compacts nothing and dies with this process: "
    "for trying things, not for production."
)
ANEW = "It starts empty each time: activate profiles again. The audit of the last run is beside the new one."


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
    """Runs broker, ingest, detect, respond and audit as processes of their own until Ctrl-C, and restarts any that dies."""
    from palisade.dev import start_roles
    from palisade.supervisor import Supervisor
    from palisade.verify.processes import ProcessNotes

    refuse_second(folder)
    path, base = _base(config, endpoint or [])
    ending, notes = _Ending(), ProcessNotes(folder)

    def child_ended(name: str, code: int) -> None:
        notes.exited(name, code)
        ending.child_ended(name, code)

    with Supervisor(folder / "logs", child_ended, notes.started) as supervisor:
        ending.listen(supervisor)
        announce(folder)
        try:
            stack = _prepared(supervisor, folder, path, base, kafka)
            with console.status("starting audit, detect, respond, ingest"):
                start_roles(supervisor, stack)
            _welcome(stack, base)
            ending.wait()
        finally:
            (folder / RUNNING).unlink(missing_ok=True)
        with console.status("stopping"):
            supervisor.stop()
    if ending.broker_died:
        say_error(f"the embedded broker ended, and its records with it; see {folder / 'logs' / 'broker.log'}")
        raise typer.Exit(1)


class _Ending:
    """Why dev ends: asked by a signal, or the broker is gone. A role that ends is started again by the supervisor."""

    def __init__(self) -> None:
        self.broker_died = False
        self._now = threading.Event()
        self._running = False
        self._supervisor: Supervisor | None = None

    def listen(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, self._asked)

    def wait(self) -> None:
        """Until there is a reason to end."""
        self._running = True
        self._now.wait()

    def child_ended(self, name: str, code: int) -> None:
        if name == "broker":
            self.broker_died = not self._now.is_set()
            self._now.set()
        elif not self._now.is_set():
            console.print(f"[yellow]{name} ended with {code}; starting it again[/]")

    def _asked(self, *_: object) -> None:
        """The first time: an orderly end, also out of a start that hangs. Again: at once."""
        if self._now.is_set() and self._supervisor is not None:
            self._supervisor.kill_all()
        self._now.set()
        if not self._running:
            raise KeyboardInterrupt


def _base(config: Path | None, endpoints: list[str]) -> tuple[Path | None, PalisadeConfig]:
    from palisade.settings import policy_of, read_yaml
    from schemas.config import EndpointConfig, PalisadeConfig
    from schemas.errors import ConfigError

    if config is None and Path("palisade.yaml").exists() and not endpoints:
        config = Path("palisade.yaml")
    if config is not None:
        base = read_yaml(config, PalisadeConfig)
        policy_of(base, config)
        return config, base
    if not endpoints:
        raise ConfigError("which endpoints? Write a palisade.yaml here, or name them: palisade dev --endpoint credit")
    return None, PalisadeConfig(endpoints=tuple(EndpointConfig(name=name) for name in endpoints))


def _prepared(
    supervisor: Supervisor, folder: Path, path: Path | None, base: PalisadeConfig, kafka: str | None
) -> DevStack:
    """The folder for the embedded broker, which is started, or for the given one. Raises PalisadeError."""
    from palisade.dev import prepare, require_topics, start_broker
    from palisade.settings import connection_of
    from streams.admin import cluster_of

    home = path.parent if path is not None else Path()
    policy = home / base.policy if base.policy is not None else None
    if kafka is None:
        return prepare(
            folder, base, policy, start_broker(supervisor, base.kafka.partitions), embedded=True, config_home=home
        )
    connection = connection_of(base.kafka.model_copy(update={"bootstrap": kafka}), home)
    cluster = cluster_of(quiet(connection))
    stack = prepare(folder, base, policy, kafka, embedded=False, config_home=home, cluster_id=cluster.cluster_id)
    require_topics(cluster, stack)
    return stack


def _welcome(stack: DevStack, config: PalisadeConfig) -> None:
    names = [endpoint.name for endpoint in config.endpoints]
    console.print(f"[bold green]Palisade runs[/] on {stack.bootstrap} for {', '.join(names)}")
    if stack.embedded:
        console.print(f"[dim]{LIMITS} {ANEW}[/]")
    console.print(f"ClickHouse (HTTP): {stack.clickhouse(config)}", soft_wrap=True)
    console.print("\nIn the environment of your serving process:")
    plain = {"PALISADE_ALLOW_PLAINTEXT": "1"} if config.kafka.allow_plaintext else {}
    for name, value in (stack.client_env | plain).items():
        console.print(f"  export {name}={value}", soft_wrap=True)
    console.print("\nNext, in another terminal, in this folder:")
    if stack.folder != DEFAULT_FOLDER:
        console.print(f"  export PALISADE_CONFIG={stack.config_path.resolve()}", soft_wrap=True)
    endpoint = names[0] if names else "NAME"
    for line in (
        "profile build train.parquet --order-by TIME --caller-column CALLER --exclude TARGET",
        f"profile activate train.profile.json --endpoint {endpoint}",
        f"publish live.parquet --endpoint {endpoint} --caller-column CALLER --time-column TIME --drop TARGET",
        "status",
        "forensics timeline",
    ):
        console.print(f"  palisade {line}", soft_wrap=True)
    console.print(f"\nLogs in {stack.folder / 'logs'}. Ctrl-C stops everything; twice: at once.")
