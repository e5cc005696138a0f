"""Targets that come back from storage: profiles, saved parts, each detector's state, manifests."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Hashable, Sequence

from detectors import report_state
from detectors.bank import MAGIC
from detectors.profile import Profile
from schemas.errors import ConfigError, StateRefused
from schemas.events import ProfileActivated
from streams.headed import split_head, with_head
from streams.profiles import Active, ProfileTopic, active_record, profile_record
from streams.snapshots import _start_of
from streams.transport.settings import KafkaConnection
from tests.conformance.scenarios import SCENARIOS, Scenario
from tests.fuzz.case import Case, Execute, Swallowed, Target
from tests.streams import log_of_predictions, test_report_log
from tests.streams.fakes import no_pause


def profile() -> Target:
    """A profile's bytes, from a file or from the topic."""

    def make() -> Execute:
        def execute(cases: Sequence[Case]) -> Hashable:
            found = Profile.from_bytes(cases[0].value or b"")
            if Profile.from_bytes(found.to_bytes()).hash != found.hash:
                raise Swallowed("a profile is not read as it is written")
            return (len(found.numeric), len(found.categorical))

        return execute

    return Target(
        "profile", make, lambda: [Case(log_of_predictions.profile().to_bytes())], declared=(ConfigError,), most=1
    )


def profile_topic() -> Target:
    """Records of `palisade.profiles`: profiles by their hash, activations by their place."""

    def make() -> Execute:
        topic = ProfileTopic(KafkaConnection(bootstrap="127.0.0.1:9"))

        def execute(cases: Sequence[Case]) -> Hashable:
            for case in cases:
                topic._take(case.key or b"", case.value, list(case.headers))
            return (len(topic._profiles), len(topic.active(0)))

        return execute

    def seeds() -> Sequence[Case]:
        name, content = profile_record(log_of_predictions.profile().to_bytes())
        activation = ProfileActivated(endpoint="credit", version="v1", profile_hash=name)
        active = active_record(Active(activation, 0, 7, activation.to_bytes(), ()))
        return [Case(one.value, one.key, one.headers) for one in (content, active)]

    return Target("profile topic", make, seeds)


def detectors() -> list[Target]:
    """The saved state of each detector of the registry: taken back, or refused with the part left cold."""
    return [_detector(name, scenario) for name, scenario in SCENARIOS.items()]


def _detector(name: str, scenario: Scenario) -> Target:
    part = scenario.parts[0]

    def make() -> Execute:
        detector = scenario.make()
        cold = detector.snapshot(part)

        def execute(cases: Sequence[Case]) -> Hashable:
            state, before = cases[0].value or b"", detector.snapshot(part)
            try:
                detector.restore(part, state)
            except StateRefused:
                if detector.snapshot(part) not in (before, cold):
                    raise Swallowed("a refused state left something behind") from None
                return "refused"
            again = detector.snapshot(part)
            detector.restore(part, again)
            if detector.snapshot(part) != again:
                raise Swallowed("what is saved again is not what was taken back")
            return len(again) // 100

        return execute

    def seeds() -> Sequence[Case]:
        detector, found = scenario.make(), []
        events = list(scenario.planted())
        for start in range(0, min(len(events), 400), 40):
            detector.update(events[start : start + 40])
            found.append(Case(detector.snapshot(part)))
        return [case for case in found if case.value] or [Case(b"")]

    return Target(f"state of {name}", make, seeds, signed=resealed, most=1)


def resealed(case: Case) -> Case:
    """A detector's state whose digest fits its content, so that what lies behind the digest is reached."""
    value = case.value or b""
    if value.startswith(report_state.MAGIC):
        start = len(report_state.MAGIC) + 32
        body = value[start + 32 :]
        return case._replace(value=value[:start] + hashlib.sha256(body).digest() + body)
    body = value[:-32]
    return case._replace(value=body + hashlib.sha256(body).digest())


def rehashed(case: Case) -> Case:
    """A saved part whose hash fits its content."""
    try:
        head, body = split_head(case.value or b"")
    except (ValueError, RecursionError):
        return case
    start = len(MAGIC) + 32
    content = body[start:]
    return case._replace(value=with_head(head, MAGIC + hashlib.sha256(content).digest() + content))


def saved_part_of_predictions() -> Target:
    """A part of the predictions log as a store gives it back."""

    def make() -> Execute:
        log = log_of_predictions.open_log()

        def execute(cases: Sequence[Case]) -> Hashable:
            log.restore("credit@v1", cases[0].value or b"")
            return len(log.snapshot("credit@v1")) // 1_000

        return execute

    def seeds() -> Sequence[Case]:
        log = log_of_predictions.open_log()
        asyncio.run(log.take(log_of_predictions.records().part(0, 3_500), 0, no_pause))
        return [Case(log.snapshot(part)) for part in log.dirty()]

    return Target("saved predictions", make, seeds, declared=(StateRefused,), signed=rehashed, most=1)


def saved_part_of_reports() -> Target:
    """A part of the reports log as a store gives it back."""

    def make() -> Execute:
        log = test_report_log.open_log()

        def execute(cases: Sequence[Case]) -> Hashable:
            log.restore(test_report_log.ENDPOINT, cases[0].value or b"")
            return len(log.snapshot(test_report_log.ENDPOINT)) // 1_000

        return execute

    def seeds() -> Sequence[Case]:
        log = test_report_log.open_log()
        test_report_log.feed(log, test_report_log.log_of_reports().part(0, 100), [])
        return [Case(log.snapshot(part)) for part in log.dirty()]

    return Target("saved reports", make, seeds, declared=(StateRefused,), signed=rehashed, most=1)


def manifest() -> Target:
    """The manifest of a partition's saved parts: an offset, or nothing."""

    def make() -> Execute:
        def execute(cases: Sequence[Case]) -> Hashable:
            start = _start_of(cases[0].value)
            return None if start is None else start >= 0

        return execute

    return Target("manifest", make, lambda: [Case(b'{"start": 41}'), Case(None)], most=1)
