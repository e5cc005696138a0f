"""What people read: the tables of status and forensics, at 80 columns and with whatever strangers wrote in the topics."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka import Producer

from palisade.cli import forensics, main, options
from responders.signing import SigningKey
from schemas.actions import Decision, JournalEntry, KillSwitch
from schemas.deadletter import DeadLetter
from schemas.signals import EndpointState
from schemas.topics import ACTIONS, DEAD_LETTERS, DIRECTIVES, SIGNALS
from schemas.wire import KIND_HEADER, Wire
from streams.embedded_broker import EmbeddedBroker
from tests.palisade.conftest import Run

OPERATOR = SigningKey.generate()
NOW = int(time.time() * 1000)
GARBAGE = (b"", b"\xff\xfe", b"null", b"[]", b"{" * 2_000, b'{"decisions": 3, "endpoint": 1}', b"5" * 10_000)
Headers = list[tuple[str, str | bytes | None]]


class Topics:
    """What lies on the topics that commands read."""

    def __init__(self, broker: EmbeddedBroker, config: Path) -> None:
        self.config = config
        self._producer = Producer({"bootstrap.servers": broker.bootstrap})

    def put(self, topic: str, value: bytes | None, headers: Headers) -> None:
        self._producer.produce(topic, value, b"key", partition=0, headers=headers)
        assert self._producer.flush(10) == 0

    def put_garbage(self) -> None:
        for topic, kind in (
            (SIGNALS, "endpoint_state"),
            (ACTIONS, "action"),
            (DIRECTIVES, "kill"),
            (DEAD_LETTERS, "dead_letter"),
        ):
            for value in (*GARBAGE, None):
                self.put(topic, value, [(KIND_HEADER, kind)])
                self.put(topic, value, [])

    def write(self, topic: str, record: Wire, signer: SigningKey | None = None) -> None:
        value = record.to_bytes()
        headers: Headers = [(KIND_HEADER, record.KIND)]
        self.put(topic, value, headers + (signer.headers(record.KIND, value) if signer else []))


@pytest.fixture
def topics(embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker], tmp_path: Path) -> Topics:
    broker = embedded_broker({SIGNALS: 1, ACTIONS: 1, DIRECTIVES: 1, DEAD_LETTERS: 1})
    config = tmp_path / "palisade.yaml"
    config.write_text(
        f"kafka: {{bootstrap: '{broker.bootstrap}'}}\noperator_keys: ['{OPERATOR.public_base64}']\n"
        "endpoints: [{name: credit}, {name: a-rather-long-name-of-an-endpoint}]\n"
    )
    return Topics(broker, config)


@pytest.fixture
def narrow(palisade: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(options.console, "_width", 80)
    return palisade


def decision(kind: str, caller: str | None = None, rate: float | None = None) -> Decision:
    return Decision(
        action_id="a1",
        kind=kind,  # type: ignore[arg-type]
        endpoint="credit",
        caller=caller,
        rate_per_s=rate,
        reason="caller_out_of_pattern",
        policy="shipped",
        policy_hash="0" * 32,
        mode="enforce",
        epoch=1,
        issued_ms=NOW,
        expires_ms=NOW + 3_600_000,  # beyond any suite
        outcome="published",
    )


def journal(number: int, *decisions: Decision) -> JournalEntry:
    return JournalEntry(entry=number, epoch=1, now_ms=NOW, inputs=[], decisions=list(decisions))


def readable(out: str) -> str:
    """The words of an output of which nothing is cut off and nothing sticks out at 80 columns."""
    assert "…" not in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    return " ".join(out.split())


def test_without_a_broker_one_sentence_says_what_to_do_and_the_library_is_silent(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("palisade.cli.options.REACHED_S", 1.5)  # librdkafka complains within one
    (tmp_path / "palisade.yaml").write_text("kafka: {bootstrap: '127.0.0.1:1'}\n")
    for words in (["status"], ["deadletter", "list"], ["topics", "create"]):
        monkeypatch.setattr(sys, "argv", ["palisade", *words, "--config", str(tmp_path / "palisade.yaml")])
        with pytest.raises(SystemExit) as ended:
            main.main()

        out, errors = capfd.readouterr()
        assert (ended.value.code, out) == (2, "")
        (line,) = errors.splitlines()
        assert line.startswith("error: no broker answered at 127.0.0.1:1")
        assert "check kafka.bootstrap" in line


def test_garbage_on_the_topics_hides_nothing_and_stops_nobody(topics: Topics, narrow: Run) -> None:
    topics.put_garbage()
    topics.write(
        SIGNALS, EndpointState(endpoint="credit", at_ms=NOW, guards_live=3, asked_per_s=150.4, fallback_ok=True)
    )
    topics.write(ACTIONS, journal(1, decision("fallback"), decision("limit", "bob", 2.5), decision("limit", "eve")))
    topics.put_garbage()

    status, out, errors = narrow("status", "--config", topics.config)

    assert (status, errors) == (0, "")
    said = readable(out)
    assert "credit 3 150.4 works fallback since " in said
    assert re.search(r"limit bob to 2.5/s since \d\d:\d\d:\d\d UTC, for \d+ s: caller_out_of_pattern", said)
    assert "limit eve to the floor" in said
    assert "kill switch" not in said


def test_only_an_operators_kill_switch_counts_and_the_newest_of_them_holds(topics: Topics, narrow: Run) -> None:
    topics.write(ACTIONS, journal(1, decision("fallback")))
    topics.write(DIRECTIVES, KillSwitch(kill=True, issued_ms=NOW + 9, actor="stranger"), SigningKey.generate())
    topics.write(DIRECTIVES, KillSwitch(kill=True, issued_ms=NOW + 9, actor="stranger"))
    assert "kill switch" not in narrow("status", "--config", topics.config)[1]

    topics.write(DIRECTIVES, KillSwitch(kill=True, issued_ms=NOW + 2, actor="person:ann", reason="drill"), OPERATOR)
    topics.write(DIRECTIVES, KillSwitch(kill=False, issued_ms=NOW + 1, actor="person:ann"), OPERATOR)  # a replayed one
    said = readable(narrow("status", "--config", topics.config)[1])
    assert "the kill switch is thrown: nothing is enforced (person:ann, " in said
    assert ": drill)" in said

    topics.write(DIRECTIVES, KillSwitch(kill=False, issued_ms=NOW + 3, actor="person:ann"), OPERATOR)
    assert "kill switch" not in narrow("status", "--config", topics.config)[1]


def test_a_kill_takes_back_what_was_decided_before_it(topics: Topics, narrow: Run) -> None:
    topics.write(ACTIONS, journal(1, decision("fallback"), decision("limit", "bob", 1.0)))
    topics.write(ACTIONS, journal(2, decision("kill")))
    topics.write(ACTIONS, journal(3, decision("unkill"), decision("limit", "eve", 1.0)))

    said = readable(narrow("status", "--config", topics.config)[1])

    assert ("fallback for" in said, "bob" in said, "eve" in said) == (False, False, True)


def test_the_place_of_a_dead_letter_can_be_copied_whole_and_what_strangers_wrote_is_text(
    topics: Topics, narrow: Run
) -> None:
    letter = DeadLetter(
        log_topic="palisade.predictions",
        log_partition=11,
        log_offset=1_234_567,
        log_row=499,
        reason="wrong_shape",
        detail="features: [red]x[/] " + "should be an object " * 5,
        endpoint="credit",
        caller="h:031a57404f409ef393937502f997f3a8",
        size=12,
        sha256="0" * 64,
        head="e30=",
        headers={},
        broker_ms=NOW,
    )
    topics.put_garbage()
    topics.write(DEAD_LETTERS, letter)
    topics.write(DEAD_LETTERS, letter.model_copy(update={"log_row": 500, "head": "x", "reason": "not_json"}))

    status, out, _ = narrow("deadletter", "list", "--config", topics.config)

    assert status == 0
    assert "palisade.predictions/11/1234567/499" in out
    assert "[red]x[/]" in readable(out)
    status, out, _ = narrow("deadletter", "show", "palisade.predictions/11/1234567/499", "--config", topics.config)
    assert (status, "12 bytes" in out, "{}" in out) == (0, True, True)
    assert narrow("deadletter", "show", "palisade.predictions/11/1234567/500", "--config", topics.config)[0] == 0


def test_dead_letters_of_a_kind_are_one_line_and_too_many_kinds_are_counted(topics: Topics, narrow: Run) -> None:
    letter = DeadLetter(log_topic="palisade.predictions", log_partition=1, log_offset=7, reason="arrow_schema", detail="c",
                        endpoint="credit", size=1, sha256="0" * 64, head="", headers={}, broker_ms=NOW)  # fmt: skip
    for row in range(1_000):
        topics.write(DEAD_LETTERS, letter.model_copy(update={"log_row": row, "caller": f"c{row % 3}"}))
    for number in range(25):
        update = {"log_offset": 8, "detail": f"d{number}", "reason": "not_json", "broker_ms": NOW - 60_000}
        topics.write(DEAD_LETTERS, letter.model_copy(update=update))

    said = readable(narrow("deadletter", "list", "--config", topics.config)[1])

    assert "palisade.predictions/1/7/999 1,000 credit 3 callers arrow_schema c" in said
    assert said.count("not_json d") == 19
    assert "and 6 more kinds (not_json 6); see those of one reason with --reason" in said


def test_people_can_look_while_the_policy_is_broken(topics: Topics, narrow: Run) -> None:
    topics.config.with_name("policy.yaml").write_text("rules: [")
    topics.config.write_text(topics.config.read_text() + "\npolicy: policy.yaml\n")
    topics.write(ACTIONS, journal(1, decision("fallback")))

    assert narrow("check", "--config", topics.config)[0] == 2
    status, out, errors = narrow("status", "--config", topics.config)
    assert (status, errors) == (0, "")
    assert "fallback since " in readable(out)


def test_what_holds_is_shown_since_it_began_even_if_much_was_said_since(
    topics: Topics, narrow: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("palisade.overview.LOOK_BACK", 10)
    began = decision("fallback").model_copy(update={"issued_ms": NOW - 1_200_000})
    topics.write(ACTIONS, journal(1, began))
    topics.write(ACTIONS, journal(2, began.model_copy(update={"issued_ms": NOW, "reason": "evidence_renewed"})))
    for number in range(60):
        topics.write(ACTIONS, journal(3 + number, decision("notify", f"c{number}")))

    said = readable(narrow("status", "--config", topics.config)[1])

    since = datetime.fromtimestamp(NOW / 1000 - 1_200, UTC).strftime("%H:%M:%S")
    assert f"fallback since {since} UTC, for " in said
    assert "caller_out_of_pattern" in said
    assert "evidence_renewed" not in said


def test_of_very_many_names_the_first_are_shown_and_the_rest_is_counted() -> None:
    assert options.shown(("a", "b")) == "a, b"
    assert options.shown(tuple(f"f{number}" for number in range(2_048))).endswith("f28, f29 and 2,018 more")


AT = datetime(2026, 3, 1, 12, 0, 0, 123_000, tzinfo=UTC)


def event(at: datetime, **more: str) -> dict[str, object]:
    usual = {"what": "decision", "endpoint": "credit-risk", "caller": "acme-of-europe", "why": "caller_out_of_pattern"}
    return {"at": at, "happened": "limit published (enforce)"} | usual | more


def test_a_timeline_is_whole_at_80_columns_and_dated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options.console, "_width", 80)
    rows = [event(AT), event(AT, caller="", why="[bold]x[/]", what="command")]

    forensics.show_timeline(pa.Table.from_pylist(rows), "nothing")
    said = readable(capsys.readouterr().out)
    assert "times of 2026-03-01, UTC" in said
    assert "12:00:00.123 credit-risk acme-of-europe decision: limit published (enforce), caller_out_of_pattern" in said
    assert "command: limit published (enforce), [bold]x[/]" in said

    forensics.show_timeline(pa.Table.from_pylist([event(AT), event(AT + timedelta(days=1))]), "nothing")
    assert "2026-03-02 12:00:00.123" in readable(capsys.readouterr().out)


def test_what_a_caller_was_answered_is_whole_at_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options.console, "_width", 80)
    row = {"endpoint": "credit-risk", "served_by": "fallback", "status": "ok", "predictions": 1_234_567, "first": AT,
           "last": AT + timedelta(seconds=9), "mean_latency_ms": 301.25, "identity": "verified"}  # fmt: skip

    forensics.show_answers(pa.Table.from_pylist([row]), "nothing")

    said = readable(capsys.readouterr().out)
    for word in ("credit-risk", "1,234,567", "12:00:00", "12:00:09", "301.2", "verified"):
        assert word in said
