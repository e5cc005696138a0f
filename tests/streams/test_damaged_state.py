"""Saved state that is damaged or that this version cannot live with: a cold start that is told, never a crash loop."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import pytest

from detectors import bank, report_state
from schemas.errors import StateRefused
from streams import headed
from streams.headed import split_head, with_head
from streams.records import Records
from tests.streams import log_of_predictions, test_labelled_log, test_prediction_log, test_report_log

MUTATIONS = 60
"""Of each kind of log; each is taken back, and goes on with the log."""


class Saved(NamedTuple):
    """A part of a log in which every detector that can has state, and the records that come after it."""

    open_log: Callable[[], Any]
    feed: Callable[..., Any]
    part: str
    state: bytes
    after: Records
    without: frozenset[str]


def saved(kind: str) -> Saved:
    if kind == "reports":
        log, at = test_report_log.log_of_reports(), 2 * test_report_log.FLOOD_AT + 9
        return _saved(test_report_log, log.part(0, at), log.part(at, at + 30), "credit")
    if kind == "labelled":
        log, at = test_labelled_log.LOG, test_labelled_log.CHANGE + 200
        return _saved(test_labelled_log, log.part(0, at), log.part(at, at + 40), "credit")
    log, at = log_of_predictions.records(), 3_500
    # the profile has no outputs, and a version with a profile learns none
    without = frozenset({"prediction_drift", "learning"})
    return _saved(test_prediction_log, log.part(0, at), log.part(at, at + 300), "credit@v1", without)


def _saved(module: Any, before: Records, after: Records, part: str, without: frozenset[str] = frozenset()) -> Saved:
    log = module.open_log()
    module.feed(log, before, [])
    return Saved(module.open_log, module.feed, part, log.snapshot(part), after, without)


each_log = pytest.mark.parametrize("kind", ["predictions", "reports", "labelled"])


@each_log
def test_a_saved_part_with_any_byte_changed_is_refused_and_leaves_the_part_cold(kind: str) -> None:
    given = saved(kind)
    log = given.open_log()
    for place in range(len(given.state)):
        damaged = given.state[:place] + bytes([given.state[place] ^ (1 + place % 255)]) + given.state[place + 1 :]
        with pytest.raises(StateRefused):
            log.restore(given.part, damaged)
    for length in range(0, len(given.state), 97):
        with pytest.raises(StateRefused):
            log.restore(given.part, given.state[:length])

    assert log.dirty() == []
    assert log.restore(given.part, given.state) == []
    assert log.snapshot(given.part) == given.state


@each_log
def test_state_of_another_meaning_whose_hashes_fit_is_taken_back_or_refused_and_the_log_goes_on(kind: str) -> None:
    given, rng = saved(kind), Random(11)
    sealed = Sealed.of(given.state)
    assert {name for name, state in sealed.detectors.items() if not state} == given.without
    assert json.loads(sealed.incidents)["open"] != {"claimed": {}, "verified": {}, "own": {}}
    kept = 0
    for _ in range(MUTATIONS):
        log = given.open_log()
        try:
            log.restore(given.part, sealed.mutated(rng))
        except StateRefused:
            continue
        kept += 1
        given.feed(log, given.after, [])
        for part in log.dirty():
            log.snapshot(part)
    assert MUTATIONS / 10 < kept < MUTATIONS


class Sealed(NamedTuple):
    """A saved part, opened."""

    head: dict[str, Any]
    hashes: dict[str, str]
    detectors: dict[str, bytes]
    incidents: bytes
    beside: bytes

    @classmethod
    def of(cls, state: bytes) -> Sealed:
        head, body = split_head(state)
        size = head.get("bank", len(body))
        content = body[len(bank.MAGIC) + 32 : size]
        (length,) = struct.unpack_from("<I", content)
        header = json.loads(content[4 : 4 + length])
        position, detectors = 4 + length, {}
        for name, _, count in header["detectors"]:
            detectors[name] = content[position : position + count]
            position += count
        hashes = {name: each for name, each, _ in header["detectors"]}
        return cls(head, hashes, detectors, content[position : position + header["book"]], body[size:])

    def mutated(self, rng: Random) -> bytes:
        """With one byte changed in the head, in one detector's state, in the incidents, or in what lies beside the bank."""
        choices = ["head", "incidents", *(["beside"] if self.beside else [])]
        which = rng.choice([*choices, *(name for name, state in self.detectors.items() if state)])
        detectors, incidents, beside = dict(self.detectors), self.incidents, self.beside
        if which == "incidents":
            incidents = _changed(incidents, rng)
        elif which == "beside":
            beside = _resealed(beside, rng)
        elif which != "head":
            detectors[which] = _resealed(detectors[which], rng)
        names = [[name, self.hashes[name], len(state)] for name, state in detectors.items()]
        header = json.dumps({"detectors": names, "book": len(incidents)}).encode()
        content = struct.pack("<I", len(header)) + header + b"".join(detectors.values()) + incidents
        body = bank.MAGIC + hashlib.sha256(content).digest() + content
        head = self.head | ({"bank": len(body)} if "bank" in self.head else {})
        if which != "head":
            return with_head(head, body + beside)
        text = _changed(json.dumps(head).encode(), rng)
        content = struct.pack("<I", len(text)) + text + body + beside
        return headed.MAGIC + hashlib.sha256(content).digest() + content


def _changed(text: bytes, rng: Random, first: int = 0) -> bytes:
    """One byte becomes another one, often one that JSON knows."""
    place = rng.randrange(first, len(text))
    byte = rng.choice((text[place] ^ 1 << rng.randrange(8), *b'09-e.,[]{}"n'))
    return text[:place] + bytes([byte]) + text[place + 1 :]


def _resealed(state: bytes, rng: Random) -> bytes:
    """A detector's state with one byte of its content changed, and the hash that fits it."""
    if state.startswith(report_state.MAGIC):
        start = len(report_state.MAGIC) + 32
        content = _changed(state[start + 32 :], rng)
        return state[:start] + hashlib.sha256(content).digest() + content
    content = _changed(state[:-32], rng)
    return content + hashlib.sha256(content).digest()


def test_a_detector_that_breaks_on_its_own_state_starts_cold_with_its_profile_and_the_others_keep_theirs() -> None:
    given = saved("predictions")
    log = given.open_log()
    drift = next(each for each in log._bank.detectors if each.name == "feature_drift")
    drift.restore = _breaks  # type: ignore[method-assign]

    assert log.restore(given.part, given.state) == ["feature_drift"]
    before, after = Sealed.of(given.state), Sealed.of(log.snapshot(given.part))
    assert {name for name in before.detectors if before.detectors[name] != after.detectors[name]} == {"feature_drift"}
    assert after.detectors["feature_drift"]  # b"" where it had no profile
    given.feed(log, given.after, [])


def _breaks(part: str, state: bytes) -> None:
    raise ZeroDivisionError("planted")
