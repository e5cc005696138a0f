"""ClickHouse's engine with the rights of one role: its own access control decides, over the HTTP port in a process.

The embedded engine has one user, and takes what that user may do from a file. So here that user is given exactly what a role
is granted: each GRANT, the settings with their bounds, the quota. What this cannot show: CREATE USER, CREATE ROLE and the
like, for the engine has no place to keep them; they are only parsed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from xml.sax.saxutils import escape

from schemas.clickhouse import BY_NAME, ClickHouseRole, RoleName
from streams.audit.engine import EmbeddedClickHouse, EngineSession, ServerClickHouse
from streams.audit.http_port import HttpPort
from tests.audit.http_asking import READER_TOKEN, WRITER_TOKEN

PORT_ITSELF = ("GRANT READ ON FILE TO nobody",)
"""What the port needs for an insert, whose rows it hands to the engine as a file."""


@contextmanager
def server_as(role: RoleName, folder: Path) -> Iterator[ServerClickHouse]:
    """The engine over the data in `folder`, as the user of `role` would find it on a server."""
    command = [sys.executable, "-m", "tests.audit.granted", role, str(folder)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        token = folder / "token"
        token.write_text(WRITER_TOKEN)
        engine = ServerClickHouse(json.loads(child.stdout.readline())["url"], "writer", token)
        yield engine
        engine.close()
    finally:
        child.kill()  # what was acknowledged is stored; the engine takes its time to close
        child.wait()


class _GrantedEngine:
    """What the port needs of an engine: sessions of the one user that the file describes."""

    def __init__(self, folder: Path, role: ClickHouseRole) -> None:
        (folder / "users.xml").write_text(_users(role))
        config = folder / "config.xml"
        config.write_text(f"<clickhouse><users_config>{folder / 'users.xml'}</users_config></clickhouse>")
        self._connection = f"{folder / 'data'}?config-file={config}"
        self._first = EngineSession(self._connection)

    def session(self, settings: dict[str, str] | None = None) -> EngineSession:
        """The port's own settings are left out: those of the role are under test."""
        del settings
        return EngineSession(self._connection)

    def command(self, sql: str) -> str:
        return self._first.run(sql).data.decode().rstrip("\n")


def _users(role: ClickHouseRole) -> str:
    grants = [*(f"GRANT {grant}" for grant in role.grants), *(one.removesuffix(" TO nobody") for one in PORT_ITSELF)]
    return f"""<clickhouse>
<users><default><password></password><networks><ip>::/0</ip></networks><profile>own</profile><quota>own</quota>
<grants>{"".join(f"<query>{escape(grant)}</query>" for grant in grants)}</grants></default></users>
<profiles><default/><own>{_settings(role)}</own></profiles>
<quotas><own><interval><duration>3600</duration>{_quota(role)}</interval></own></quotas>
</clickhouse>"""


def _settings(role: ClickHouseRole) -> str:
    """`name = value MIN least MAX most` as the file writes it."""
    values, bounds = "", ""
    for setting in role.settings:
        name, _, rest = setting.partition(" = ")
        words = rest.split()
        values += f"<{name}>{words[0]}</{name}>"
        limits = "".join(
            f"<{kind.lower()}>{bound}</{kind.lower()}>" for kind, bound in zip(words[1::2], words[2::2], strict=True)
        )
        bounds += f"<{name}>{limits}</{name}>" if limits else ""
    return f"{values}<constraints>{bounds}</constraints>"


def _quota(role: ClickHouseRole) -> str:
    pairs = (bound.split(" = ") for bound in role.quota)
    return "".join(f"<{name}>{most}</{name}>" for name, most in pairs)


def main(role: RoleName, folder: Path) -> None:
    """Serves until standard input ends."""
    engine = cast(EmbeddedClickHouse, _GrantedEngine(folder, BY_NAME[role]))
    with HttpPort(engine, reader_token=READER_TOKEN, writer_token=WRITER_TOKEN) as port:
        print(json.dumps({"url": port.url}), flush=True)  # noqa: T201 - the parent waits for it
        sys.stdin.read()


if __name__ == "__main__":
    main(cast(RoleName, sys.argv[1]), Path(sys.argv[2]))
