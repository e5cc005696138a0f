"""What the responder knows: actions that hold, trips, people's holds, epochs; and what it saw last of each endpoint.

The durable part changes in one place only, `responders.fold`, and by decisions alone: that is why the journal rebuilds
it. The rest (`Seen`) is what arrives again by itself within seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from pydantic import Field

from schemas.actions import Mode, Reason
from schemas.errors import StateRefused
from schemas.signals import EndpointState, Signal
from schemas.wire import Wire

MACHINE: Final = "palisade"
"""The actor of every decision that no person commanded."""
ALL_ENDPOINTS: Final = "@all"
"""Stands for the endpoint in a decision about the whole fleet (kill, unkill)."""
NO_ENDPOINT: Final = "@none"
"""Stands for the endpoint in the refusal of a command that named none."""

MAX_INCIDENTS = 2_048
"""Incidents remembered so that people are told once; the one longest untouched goes first."""
MAX_ENDED = 2_048
"""Ended incidents remembered, so that what a restarted detector says of them again has no effect: far more than a worker
says between two commits. The one that ended longest ago goes first."""
MAX_ANSWERED = 4_096
"""Signals remembered that led to a decision, for the same reason: their incidents may be open still. The oldest goes first."""
MAX_TRIP_RECORDS = 2_048
"""Targets whose trips are remembered; the one that tripped longest ago goes first."""
MAX_HOLDS = 500
"""People's holds; the one that ends first goes first."""
MAX_ALL_LIMITS = 2_000
"""Caller limits over all endpoints: what keeps the saved state under `MAX_STATE_BYTES`."""
MAX_HOLDERS = 4
"""Incidents that hold one action; the oldest goes first."""
MAX_TRIPS = 8
"""Trips remembered of a target, newest last."""
MAX_WAITING = 1_000
"""Caller signals of one configured endpoint that wait to be decided together; above it the weakest is left to its next
update."""
MAX_PACE = 64
"""Times of endpoint-wide actions that are remembered for the pace."""
MAX_STATE_BYTES = 4 * 1024 * 1024
STATE_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Action:
    """An action that holds on a route (`rate_per_s` None) or on a caller.

    `holders` are the open incidents that want it; empty for a person's. `release_refused` is the rail that last kept it
    from being released, so that this is said once.
    """

    action_id: str
    mode: Mode
    reason: Reason
    actor: str
    since_ms: int
    expires_ms: int
    rate_per_s: float | None = None
    holders: tuple[str, ...] = ()
    rule: str | None = None
    release_refused: str = ""

    @property
    def by_person(self) -> bool:
        return self.actor != MACHINE

    @property
    def enforced(self) -> bool:
        return self.mode == "enforce"


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """One endpoint: what holds on it. `epoch` grows with every change of that; `changed_ms` is when it last did.

    `wanted_ms`: when an incident last asked for an endpoint-wide action, granted or not (R4). `published_until_ms`: the
    latest expiry that was ever published, so that a release is still sent after a takeover. `cap_told_ms`: when people
    were last told that the cap of callers refuses limits.
    """

    epoch: int = 0
    route: Action | None = None
    limits: dict[str, Action] = field(default_factory=dict)
    wanted_ms: int = 0
    published_until_ms: int = 0
    cap_told_ms: int = 0
    changed_ms: int = 0

    def actions(self) -> Iterator[tuple[str | None, Action]]:
        """(caller, action) of all that holds; caller None for the route."""
        if self.route is not None:
            yield None, self.route
        yield from self.limits.items()

    @property
    def enforced(self) -> bool:
        """Something holds on it that its guards must know of."""
        return any(action.enforced for _, action in self.actions())


@dataclass(frozen=True, slots=True)
class Incident:
    """What was already said of an open incident: `kind:reason` each, so that it is said once."""

    endpoint: str
    at_ms: int
    said: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TripRecord:
    """A target's trips (ms, newest last) and when the machine last released it (0: never)."""

    trips: tuple[int, ...] = ()
    released_ms: int = 0


@dataclass(frozen=True, slots=True)
class Hold:
    """A person's word that a target be left alone until `expires_ms`: the machine only proposes."""

    command_id: str
    actor: str
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Sent:
    """The directive last sent for an endpoint. `confirmed` False: Kafka said that it did not take it."""

    epoch: int
    at_ms: int
    confirmed: bool = True


@dataclass(frozen=True, slots=True)
class Awaited:
    """A signal whose fallback waits for its endpoint's guards to report, at most until `until_ms`."""

    signal: Signal
    until_ms: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What the journal does not hold: last endpoint states, signals that wait, directives sent.

    `waiting`: endpoint -> incident -> caller signal. `batch_until_ms`: when those of an endpoint are decided.
    `awaiting`: one signal an endpoint.
    """

    views: dict[str, EndpointState] = field(default_factory=dict)
    waiting: dict[str, dict[str, Signal]] = field(default_factory=dict)
    batch_until_ms: dict[str, int] = field(default_factory=dict)
    awaiting: dict[str, Awaited] = field(default_factory=dict)
    sent: dict[str, Sent] = field(default_factory=dict)

    def undecided(self) -> set[str]:
        """Ids of the signals that wait for their batch or for an endpoint's guards."""
        ids = {waits.signal.signal_id for waits in self.awaiting.values()}
        return ids.union(*({signal.signal_id for signal in batch.values()} for batch in self.waiting.values()))


@dataclass(slots=True)
class RespondState:
    """The whole state: a value. `decide` works on a copy; nothing else changes one in place.

    `epoch` numbers every change of any endpoint's wanted state. `entry` is the last entry of the journal. `applied` are
    the offsets of inputs the journal answers, by `topic/partition`, but for those in `waiting`, whose answer is still to
    come. `pace_ms` are the times of endpoint-wide actions. `ended` are incidents that are over, with the time of that.
    `answered` are the last signals that led to a decision, with the time of that. `trips` and `holds` are keyed by
    `target_key`.
    """

    epoch: int = 0
    entry: int = 0
    killed: bool = False
    endpoints: dict[str, EndpointRecord] = field(default_factory=dict)
    incidents: dict[str, Incident] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)
    trips: dict[str, TripRecord] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    pace_ms: tuple[int, ...] = ()
    applied: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, tuple[int, ...]] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)

    def copy(self) -> RespondState:
        """A copy whose own dictionaries may be changed; the records in them are frozen and shared."""
        seen = Seen(*(dict(getattr(self.seen, part.name)) for part in fields(Seen)))
        return replace(
            self,
            endpoints=dict(self.endpoints),
            incidents=dict(self.incidents),
            ended=dict(self.ended),
            answered=dict(self.answered),
            trips=dict(self.trips),
            holds=dict(self.holds),
            applied=dict(self.applied),
            waiting=dict(self.waiting),
            seen=seen,
        )

    def durable(self) -> RespondState:
        """Without what the journal does not hold."""
        return replace(self, seen=Seen())

    def record(self, endpoint: str) -> EndpointRecord:
        return self.endpoints.get(endpoint, _UNTOUCHED)

    def action(self, endpoint: str, caller: str | None) -> Action | None:
        """What holds on the endpoint's route (caller None) or on a caller of it."""
        record = self.record(endpoint)
        return record.route if caller is None else record.limits.get(caller)

    def has_applied(self, topic: str, partition: int, offset: int) -> bool:
        """True if the journal answers this input already: skip it when it is delivered again."""
        key = input_key(topic, partition)
        return offset <= self.applied.get(key, -1) and offset not in self.waiting.get(key, ())


_UNTOUCHED: Final = EndpointRecord()


def input_key(topic: str, partition: int) -> str:
    """The name of a log of inputs in `applied` and `waiting`."""
    return f"{topic}/{partition}"


def target_key(endpoint: str, caller: str | None) -> str:
    """The name of a target. Ids hold no `/`, so no two targets share one."""
    return endpoint if caller is None else f"{endpoint}/{caller}"


class _Saved(Wire):
    """The durable state as JSON; `views` without the callers who knock and the split of limits."""

    epoch: int
    entry: int
    killed: bool
    endpoints: dict[str, EndpointRecord]
    incidents: dict[str, Incident]
    ended: dict[str, int] = Field(default_factory=dict)
    answered: dict[str, int] = Field(default_factory=dict)
    trips: dict[str, TripRecord]
    holds: dict[str, Hold]
    pace_ms: tuple[int, ...]
    applied: dict[str, int]
    waiting: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    views: dict[str, EndpointState]


def to_bytes(state: RespondState) -> bytes:
    """A line of JSON with schema number and SHA-256, then the state as JSON. StateRefused above `MAX_STATE_BYTES`."""
    views = {
        name: view.model_copy(update={"knocking": [], "guard_shares": {}}) for name, view in state.seen.views.items()
    }
    parts = {part.name: getattr(state, part.name) for part in fields(RespondState) if part.name != "seen"}
    body = _Saved(**parts, views=views).to_bytes()
    head = json.dumps({"state_schema": STATE_SCHEMA, "sha256": hashlib.sha256(body).hexdigest()}).encode()
    saved = head + b"\n" + body
    if len(saved) > MAX_STATE_BYTES:
        raise StateRefused(f"the state has {len(saved)} bytes, more than {MAX_STATE_BYTES}")
    return saved


def from_bytes(saved: bytes) -> RespondState:
    """The state of `to_bytes`; StateRefused on anything else: read the journal from its start instead."""
    if len(saved) > MAX_STATE_BYTES:
        raise StateRefused(f"the saved state has {len(saved)} bytes, more than {MAX_STATE_BYTES}")
    head, _, body = saved.partition(b"\n")
    try:
        envelope: Any = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise StateRefused("the saved state has no readable head") from error
    if not isinstance(envelope, Mapping) or envelope.get("state_schema") != STATE_SCHEMA:
        raise StateRefused(f"the saved state is not of schema {STATE_SCHEMA}")
    if envelope.get("sha256") != hashlib.sha256(body).hexdigest():
        raise StateRefused("the saved state is damaged: its SHA-256 differs")
    try:
        read = _Saved.from_bytes(body)
    except ValueError as error:
        raise StateRefused("the saved state has another shape") from error
    durable = {part.name: getattr(read, part.name) for part in fields(RespondState) if part.name != "seen"}
    return RespondState(**durable, seen=Seen(views=read.views))


def as_dict(state: RespondState) -> dict[str, Any]:
    """The durable state as plain values, to show to people."""
    shown = asdict(state.durable())
    del shown["seen"]
    return shown
