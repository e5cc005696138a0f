"""The kill switch drill: the control record, the command and the local file each suffice, each without the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from confluent_kafka import Message
from palisade_client import Guard
from palisade_client.testing import START_MS, FakeTransport, ManualClock, Record

from palisade.operate import NotConfirmed, Operator, Wanted, order, throw_kill_switch
from palisade.running import DEFAULT_FOLDER, announce
from palisade.settings import load_connection
from responders.signing import Keyring
from schemas.actions import Command
from schemas.topics import ACTIONS, COMMANDS, DEAD_LETTERS, DIRECTIVES, RESPOND_STATE
from streams.embedded_broker import EmbeddedBroker
from streams.reading import read_to_end
from streams.records import listed
from tests.palisade.conftest import Run
from tests.streams.responding import OPERATOR, SIGNING, role_on, run_of, take_part, trouble

Start = Callable[[Mapping[str, int]], EmbeddedBroker]
ANN = Operator("person:ann", OPERATOR)
TOPICS = {ACTIONS: 1, RESPOND_STATE: 1, DIRECTIVES: 1, COMMANDS: 1, DEAD_LETTERS: 1}


class Serving:
    """A serving process: its model says 1, its fallback 0."""

    def __init__(self, kill_file: Path) -> None:
        self.clock, self.transport = ManualClock(), FakeTransport()
        keys = f"{SIGNING.public_base64},{OPERATOR.public_base64}"
        self.guard = Guard(
            "a", fallback=0.0, directive_keys=keys, transport=self.transport, clock=self.clock, kill_file=str(kill_file)
        )

    def hears(self, *messages: Message) -> None:
        for message in messages:
            headers = {name: value or b"" for name, value in listed(message.headers()) or ()}
            key = (message.key() or b"").decode()
            self.transport.deliver(Record(key, message.value() or b"", headers, START_MS))

    def answers(self) -> set[float]:
        """What a few calls get; one in twenty probes the primary while it is on fallback."""
        self.clock.advance(2)
        self.guard.flush()
        return {self.guard.call(lambda features: 1.0, {"x": 1.0}, caller="c") for _ in range(8)}


@pytest.fixture
def broker(embedded_broker: Start) -> EmbeddedBroker:
    return embedded_broker(TOPICS)


def directives(broker: EmbeddedBroker) -> list[Message]:
    return list(read_to_end(broker.connection, DIRECTIVES, 0))


@pytest.fixture
def serving(broker: EmbeddedBroker, tmp_path: Path) -> Serving:
    """On fallback, as the responder ordered."""

    async def story() -> None:
        async with role_on(broker.connection, fenced=False) as role:
            await take_part(role)
            await role.handle(trouble("a", first=0))

    asyncio.run(story())
    serving = Serving(tmp_path / "kill")
    serving.answers()
    serving.hears(*directives(broker))
    assert 0.0 in serving.answers()
    return serving


def test_the_control_record_alone_returns_every_call_to_the_primary_until_it_is_taken_back(
    serving: Serving, broker: EmbeddedBroker
) -> None:
    known = len(directives(broker))

    assert throw_kill_switch(broker.connection, ANN, kill=True, reason="drill") == 1
    serving.hears(*directives(broker)[known:])
    assert serving.answers() == {1.0}

    throw_kill_switch(broker.connection, ANN, kill=False, reason="over")
    serving.hears(*directives(broker)[known + 1 :])
    assert 0.0 in serving.answers()


def test_the_local_file_alone_returns_every_call_to_the_primary(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "kill").touch()

    assert serving.answers() == {1.0}


def test_the_command_alone_makes_the_responder_take_everything_back(serving: Serving, broker: EmbeddedBroker) -> None:
    known = len(directives(broker))
    throw_kill_switch(broker.connection, ANN, kill=True, reason="drill")
    (message,) = read_to_end(broker.connection, COMMANDS, 0)
    ordered = Command.from_bytes(message.value() or b"")
    records = {(message.value() or b"") for message in directives(broker)[known:]}

    async def story() -> None:
        async with role_on(broker.connection, fenced=False) as role:
            await take_part(role)
            await role.handle(run_of(COMMANDS, (ordered, True)))

    asyncio.run(story())
    serving.hears(*(message for message in directives(broker)[known:] if message.value() not in records))

    assert serving.answers() == {1.0}


def test_what_a_person_orders_is_signed_with_the_persons_key(broker: EmbeddedBroker) -> None:
    given = order(broker.connection, ANN, Wanted("limit", "a", "bob"), reason="drill", for_s=60)

    (message,) = read_to_end(broker.connection, COMMANDS, 0)
    found = Command.from_bytes(message.value() or b"")
    signer = Keyring([OPERATOR.public_base64]).verify("command", message.value() or b"", listed(message.headers()))
    assert (found, signer) == (given, OPERATOR.key_id)
    assert (found.actor, found.caller, found.expires_ms - found.issued_ms) == ("person:ann", "bob", 60_000)


def test_an_order_that_no_broker_confirms_is_an_error(broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palisade.operate.CONFIRM_S", 0.3)
    broker.down()

    with pytest.raises(NotConfirmed, match="did not confirm"):
        order(broker.connection, ANN, Wanted("fallback", "a"))


def test_the_command_line_throws_it_with_a_broken_policy_no_worker_and_no_clickhouse(
    palisade: Run, serving: Serving, broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a folder where `palisade dev` hangs in its start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PALISADE_CONFIG", raising=False)
    announce(DEFAULT_FOLDER)
    (DEFAULT_FOLDER / "policy.yaml").write_text("rules: [")
    (DEFAULT_FOLDER / "palisade.yaml").write_text(
        f"kafka: {{bootstrap: '{broker.bootstrap}'}}\nclickhouse: {{url: 'http://127.0.0.1:1'}}\n"
        "policy: policy.yaml\nsigning_key_file: gone.pem\n"
    )
    (DEFAULT_FOLDER / "keys").mkdir()
    OPERATOR.save(DEFAULT_FOLDER / "keys" / "operator.pem")
    assert palisade("status")[0] == 2
    known = len(directives(broker))

    status, out, errors = palisade("kill", "--reason", "drill")
    assert (status, errors) == (0, "")
    assert "1 partitions told" in out
    serving.hears(*directives(broker)[known:])
    assert serving.answers() == {1.0}

    assert palisade("unkill")[0] == 0
    serving.hears(*directives(broker)[known + 1 :])
    assert 0.0 in serving.answers()


def test_without_a_broker_the_command_line_says_that_nobody_was_told(
    palisade: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.admin.TIMEOUT_S", 0.3)
    (tmp_path / "palisade.yaml").write_text("kafka: {bootstrap: '127.0.0.1:1'}\n")
    OPERATOR.save(tmp_path / "op.pem")

    status, out, errors = palisade("kill", "--config", tmp_path / "palisade.yaml", "--key", tmp_path / "op.pem")

    assert (status, out) == (2, "")
    assert "no broker answered" in errors


def test_the_kill_switch_needs_no_sound_policy_and_no_signing_key(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("rules: [")
    (tmp_path / "palisade.yaml").write_text(
        "kafka: {bootstrap: '127.0.0.1:9'}\npolicy: policy.yaml\nsigning_key_file: nowhere.pem\nendpoints: 3\n"
    )

    connection, home = load_connection(tmp_path / "palisade.yaml")

    assert (connection.bootstrap, home) == ("127.0.0.1:9", tmp_path)
