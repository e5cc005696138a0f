"""`palisade worker ROLE`: one role as one process."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from palisade.cli.options import ConfigOption, settings_of


def register(app: typer.Typer) -> None:
    app.command("worker")(worker)


def worker(
    role: Annotated[str, typer.Argument(help="ingest, detect, respond or audit")],
    name: Annotated[str | None, typer.Option(help="of this worker, in logs and ticks")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="serve Prometheus metrics, /live and /ready on this port of loopback")
    ] = None,
    health_port: Annotated[int | None, typer.Option(help="serve /live and /ready alone on this port")] = None,
    health_host: Annotated[str, typer.Option(help="where: 0.0.0.0 lets a kubelet ask")] = "127.0.0.1",
    config: ConfigOption = None,
) -> None:
    """Runs one role until SIGTERM; start several of the same role to share or to stand by."""
    # Before numpy is read: a block's products take 0.2 ms, and threads that spin for each other 8 ms of two busy cores.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from palisade.workers import ROLES, run_role
    from palisade.workers.common import Ports, set_up_logging
    from schemas.errors import ConfigError
    from streams import lifeline

    if role not in ROLES:
        raise ConfigError(f"there is no role {role!r}; there are {', '.join(ROLES)}")
    set_up_logging()
    lifeline.hold(lifeline.end_this_process)
    ports = Ports(metrics_port, health_port, health_host)
    raise typer.Exit(run_role(role, settings_of(config), name or role, ports))
