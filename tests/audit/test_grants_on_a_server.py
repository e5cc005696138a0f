"""The printed statements on a ClickHouse server, where Docker answers: users, passwords and grants as they are in production."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from schemas.clickhouse import BY_NAME, ROLES, RoleName
from schemas.tables import all_ddl
from streams.audit.engine import NotAuthenticated, ServerClickHouse, Unavailable
from tests.audit.grant_checks import (
    assert_a_reader_keeps_its_limits,
    assert_audit_and_people_can_work,
    wrongly_decided,
)
from tests.support.kafka import docker_answers
from tests.support.waiting import until

pytestmark = pytest.mark.slow
IMAGE = "clickhouse/clickhouse-server:25.8"
PORT = 8123
PASSWORD = "canary-password-of-clickhouse"


class _Server:
    """The server, set up as docs/operations.md says."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self._password = url, folder / "password"
        self._password.write_text(PASSWORD)

    def connect(self, user: str) -> ServerClickHouse:
        return ServerClickHouse(self.url, user, self._password)

    @contextmanager
    def as_role(self, role: RoleName) -> Iterator[ServerClickHouse]:
        engine = self.connect(BY_NAME[role].user)
        yield engine
        engine.close()

    def answers(self) -> bool:
        try:
            return self.connect("default").command("SELECT 1") == "1"
        except Unavailable:
            return False

    def set_up(self) -> None:
        access = self.connect("default")
        for role in ROLES:
            for statement in role.statements():
                access.command(statement)
            with pytest.raises(NotAuthenticated):
                self.connect(role.user).command("SELECT 1")
            access.command(f"ALTER USER {role.user} IDENTIFIED WITH sha256_password BY '{PASSWORD}' HOST ANY")
        with self.as_role("owner") as owner:
            for statement in all_ddl():
                owner.command(statement)


def test_on_a_server_each_user_can_do_its_work_and_nothing_else(tmp_path: Path) -> None:
    if not docker_answers():
        pytest.skip("no Docker engine answers here, so there is no ClickHouse server")
    from testcontainers.core.container import DockerContainer

    container = DockerContainer(IMAGE).with_exposed_ports(PORT)
    container.with_env("CLICKHOUSE_PASSWORD", PASSWORD).with_env("CLICKHOUSE_DEFAULT_ACCESS_MANAGEMENT", "1")
    with container:
        server = _Server(f"http://{container.get_container_host_ip()}:{container.get_exposed_port(PORT)}", tmp_path)
        until(server.answers, "ClickHouse", within_s=120, every_s=0.5)
        server.set_up()
        assert_audit_and_people_can_work(server.as_role)
        assert_a_reader_keeps_its_limits(server.as_role)
        for role in ROLES:
            assert wrongly_decided(server.as_role, role.name) == {}
