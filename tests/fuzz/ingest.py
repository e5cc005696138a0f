"""Target of ingest: requests and responses of services in any language, paired into predictions and counted into reports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Hashable, Sequence
from typing import Any

from schemas.config import Bucket
from schemas.deadletter import DeadLetter
from schemas.topics import DEAD_LETTERS, PREDICTIONS, REQUESTS, RESPONSES
from streams.decode import Decoder
from streams.ingest.batches import Rules
from streams.ingest.counting import Counts
from streams.ingest.partition import Handled, PairingLog
from streams.redaction import Redactor
from tests.fuzz.case import START_MS, Case, Execute, Swallowed, Target
from tests.fuzz.logs import as_records
from tests.ingest.making import request, response
from tests.ingest.test_encodings import arrow
from tests.ingest.test_hostile import CASES, CE
from tests.streams.fakes import no_pause

RULES: Any = {"ssn": "drop", "country": "hash", "amount": Bucket(bucket=10), "@caller": "hash"}
PARTITIONS = 4
PASSED_ON = "features: Field required"
"""Why detect refuses what ingest passes on of a malformed request: whose it is, and nothing else."""
TO_RESPONSES = "fuzz-responses"
"""A header that says on which of the two topics a case is written."""


def pairing() -> Target:
    """Nothing raises; what is written can be decoded, all of it; what waits is bounded and runs out."""

    def make() -> Execute:
        rules = Rules(lambda name: name == "credit", {"private": Redactor(RULES, bytes(32))})
        log = PairingLog(0, PARTITIONS, rules, Counts(0, "boot", lambda _: True, lambda _: False), most_bytes=1 << 20)
        decoder = Decoder(PREDICTIONS, 0, 1, lambda endpoint, version: None)
        first, now_ms, written = {REQUESTS: 0, RESPONSES: 0}, START_MS, 0

        def judged(handled: Handled) -> set[Any]:
            nonlocal written
            behaviour: set[Any] = set()
            for record in handled.outgoing:
                if record.topic == DEAD_LETTERS:
                    letter: DeadLetter = DeadLetter.from_bytes(record.value)
                    if letter.reason == "handler_failed":
                        raise Swallowed(letter.detail)
                    behaviour.add(letter.reason)
                elif record.topic == PREDICTIONS:
                    written += 1
                    for segment in decoder.segments(
                        [record.value], [record.key], [list(record.headers)], [written], [now_ms]
                    ):
                        behaviour |= {int(flags) for flags in segment.columns.flags.tolist()}
                        for dead in segment.dead_letters:
                            if dead.detail != PASSED_ON:
                                raise Swallowed(f"a prediction of ingest is refused: {dead.reason} {dead.detail}")
            return behaviour

        def execute(cases: Sequence[Case]) -> Hashable:
            nonlocal now_ms
            behaviour: set[Any] = set()
            for topic in (REQUESTS, RESPONSES):
                taken = [
                    case for case in cases if (topic == RESPONSES) == any(n == TO_RESPONSES for n, _ in case.headers)
                ]
                if taken:
                    plain = [
                        case._replace(headers=tuple(h for h in case.headers if h[0] != TO_RESPONSES)) for case in taken
                    ]
                    records = as_records(plain, first[topic])
                    first[topic] += len(taken)
                    behaviour |= judged(asyncio.run(log.take(topic, records, now_ms, no_pause)))
            now_ms += 4_000
            behaviour |= judged(log.expire(now_ms, now_ms, now_ms))
            for report in log.reports(now_ms):
                json.loads(report.value)
            if sum(log.held_bytes.values()) > 4 << 20:
                raise Swallowed(f"{log.held_bytes} bytes wait")
            return frozenset(behaviour)

        return execute

    return Target("ingest", make, _seeds, most=10, share=5)


def _seeds() -> Sequence[Case]:
    private = {"ssn": "078-05-1120", "amount": 12.5, "country": "NL"}
    kserve = "org.kubeflow.serving.inference"
    meta = (
        ("ce_inferenceservicename", b"credit"),
        ("ce_metadata", b'{"X-Api-Key-Id":["k-42"]}'),
        ("ce_time", b"2026-01-01T00:00:00.123Z"),
    )
    ce = dict(CE)
    bodies = (
        b'{"instances":[[1.0,2.0],[3.0,4.0]]}', b'{"instances":[{"a":1.5,"b":"x"}]}',
        b'{"inputs":[{"name":"amount","shape":[2,1],"datatype":"FP64","data":[12.5,1.0]},{"name":"plan","shape":[2],"datatype":"BYTES","data":["a","b"]}]}',
    )  # fmt: skip
    answers = (
        b'{"predictions":[0.5,0.25]}',
        b'{"model_name":"m","outputs":[{"name":"y","shape":[2],"datatype":"FP64","data":[0.5,0.1]}]}',
    )
    to = ((TO_RESPONSES, b""),)
    asked = [
        request("r1"),
        request("r2", endpoint="private", features=private),
        request("r3", features=[1.0, "x", None]),
    ]
    answered = [response("r1"), response("r2", endpoint="private"), response("r3", prediction="yes", status="ok")]
    cases = [Case(json.dumps(each).encode()) for each in asked]
    cases += [Case(json.dumps(each).encode(), None, to) for each in answered]
    cases += [
        Case(json.dumps(asked).encode()),
        Case(arrow(asked[:2])),
        Case(json.dumps(request("r4") | response("r4")).encode()),
    ]
    cases += [Case(json.dumps(answered).encode(), None, to), Case(arrow([answered[0]] * 3), None, to)]
    for body in bodies:
        cases.append(Case(body, None, tuple((dict(ce) | {"ce_type": f"{kserve}.request".encode()}).items()) + meta))
    for body in answers:
        cases.append(
            Case(body, None, tuple((dict(ce) | {"ce_type": f"{kserve}.response".encode()}).items()) + meta + to)
        )
    whole = {
        "specversion": "1.0",
        "id": "7",
        "source": "s",
        "type": f"{kserve}.request",
        "inferenceservicename": "credit",
        "data": {"instances": [[1.0]]},
    }
    cases.append(Case(json.dumps(whole).encode(), None, (("content-type", b"application/cloudevents+json"),)))
    hostile = [Case(value, None, tuple(headers or ())) for value, headers, _ in CASES if len(value or b"") < 20_000]
    return [*cases, *hostile]
