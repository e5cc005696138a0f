"""Respond dies and stands still on Apache Kafka, and a standby goes on: nothing forgotten, nothing done twice."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from palisade_client._directives import DirectiveState
from palisade_client._keys import public_keys
from palisade_client._transport import KafkaTransport, Record

from palisade.cli import main as cli
from tests.integration.responders import ENDPOINT, NAMES, Hook, Pair, hook, pair_on, until
from tests.support.apache_kafka import ApacheKafka

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


class Follower:
    """What a Guard takes of its directives, and what it refuses."""

    def __init__(self, pair: Pair) -> None:
        env = pair.stack.client_env
        self.state = DirectiveState(ENDPOINT, public_keys(env["PALISADE_DIRECTIVE_KEYS"]), "g")
        self.taken: list[tuple[float, int]] = []
        self._transport = KafkaTransport(env["PALISADE_BOOTSTRAP"], {})
        self._transport.follow(ENDPOINT, self)

    def on_record(self, record: Record) -> None:
        if self.state.concerns(record) and self.state.accept(record, time.monotonic(), 0.0) is None:
            self.taken.append((time.monotonic(), self.state.epoch))

    def on_end(self) -> None: ...

    def close(self) -> None:
        self._transport.close(1.0)


@pytest.fixture
def told() -> Iterator[Hook]:
    with hook() as made:
        yield made


@pytest.fixture
def pair(told: Hook, tmp_path: Path) -> Iterator[Pair]:
    with ApacheKafka() as kafka, pair_on(kafka, tmp_path / "dev", told.port, env={}) as made:
        yield made


def verified(pair: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    out = str(pair.stack.folder / "history")
    monkeypatch.setattr(
        sys, "argv", ["palisade", "verify", "run", "--config", str(pair.stack.config_path), "--out", out]
    )
    with pytest.raises(SystemExit) as end:
        cli.main()
    text = capsys.readouterr().out
    said = json.loads(text.splitlines()[-1])["verify"]
    assert "violated" not in said.values(), text
    assert end.value.code == 0, text
    return dict(said)


def _limits(pair: Pair, callers: set[str]) -> bool:
    return set(pair.limited()) == callers


def test_a_killed_responder_is_replaced_and_nothing_is_forgotten_or_done_twice(
    pair: Pair, told: Hook, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = pair.drifts()
    until(lambda: any(each.data["route"] == "fallback" for each in told.told), "the fallback")
    told.status = 500  # from here on it takes nothing
    before, active = pair.count(), pair.active()
    pair.callers_flood("early-1", "early-2", "early-3")  # the first is decided at once, the others with the next moment
    pair.kill(active)
    pair.callers_flood("late-1", "late-2")
    pair.await_takeover(before)
    everybody = {"early-1", "early-2", "early-3", "late-1", "late-2"}
    until(lambda: set(pair.limited()) == everybody, f"all callers limited\n{pair.tails()}")
    assert len(pair.limited()) == len(everybody), "each once"
    assert {(d.expires_ms or 0) - d.issued_ms for d in pair.decided("limit")} == {600_000}

    told.status = 204
    until(lambda: told.told[-1].data["epoch"] == pair.directives()[-1].epoch, "the webhook that was pending")
    over()  # the restore goes on with the heir
    until(lambda: [d.kind for d in pair.decided("restore")] == ["restore"], "the restore")
    until(lambda: told.told[-1].data["route"] == "primary", "the restore at the receiver")

    for _ in range(2):  # also while a takeover is under way, and right after it
        before = pair.count()
        pair.kill(pair.active())
        pair.callers_flood(f"more-{before}")
        second = pair.await_takeover(before)
        pair.kill(second)
        pair.await_takeover(before + 1)
        everybody.add(f"more-{before}")
        until(partial(_limits, pair, everybody), f"all callers limited\n{pair.tails()}")
    assert len(pair.limited()) == len(everybody)
    until(lambda: told.told[-1].data["epoch"] == pair.directives()[-1].epoch, "the last webhook")
    told_under = {(each.data["epoch"], each.id) for each in told.told}
    assert len(told_under) == len({epoch for epoch, _ in told_under}), "one id for each epoch"
    until(lambda: any(d.reason == "webhook_delivered" for d in pair.journal()[-1].decisions), "its delivery on record")
    said = verified(pair, capsys, monkeypatch)
    assert {said[name] for name in ("I6", "I8", "I11")} == {"holds"}


def test_a_responder_that_stood_still_does_nothing_once_another_has_taken_over(
    pair: Pair, told: Hook, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = Follower(pair)
    told.status = 500  # so that the one that stands still has a webhook to send again
    pair.callers_flood("bob")
    until(lambda: told.told and follower.taken, "the limit")
    before, old = pair.count(), pair.active()
    pair.signal(old, signal.SIGSTOP)
    try:
        heir = pair.await_takeover(before)
        assert heir != old
        fenced = max(directive.epoch for directive in pair.directives())
        pair.callers_flood("eve")  # nobody but the heir may decide it
        until(lambda: sorted(pair.limited()) == ["bob", "eve"], "the second limit")
    finally:
        woken = time.monotonic()
        pair.signal(old, signal.SIGCONT)
    until(lambda: pair.count() > before + 1 or old in pair.ended, f"the old one knows\n{pair.tails()}")
    pair.callers_flood("mallory")
    until(lambda: len(pair.limited()) == 3, "the third limit")
    assert sorted(pair.limited()) == ["bob", "eve", "mallory"]
    assert all(each.data["epoch"] >= fenced for each in told.told if each.at > woken)
    epochs = [epoch for _, epoch in follower.taken]
    assert epochs == sorted(epochs)
    assert all(epoch >= fenced for at, epoch in follower.taken if at > woken)
    told.status = 204
    until(lambda: told.told[-1].data["epoch"] == pair.directives()[-1].epoch, "the last webhook")
    follower.close()

    before = pair.count()  # and it is a standby again
    pair.kill(pair.active())
    pair.await_takeover(before)
    pair.callers_flood("oscar")
    until(lambda: len(pair.limited()) == 4, f"the fourth limit\n{pair.tails()}")
    said = verified(pair, capsys, monkeypatch)
    assert {said[name] for name in ("I6", "I8")} == {"holds"}
    assert set(NAMES) >= set(pair.ended)
