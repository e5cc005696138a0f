"""What this process was told to do: verifies directives and kill switches, and says what holds right now.

Pure of I/O and clocks: `now` is handed in as monotonic seconds. Rails R2, R8, R9, R11-R13 of the design hold here a
second time, whatever the responder sends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from palisade_client._keys import PublicKeys
from palisade_client._limits import Limit
from palisade_client._transport import Record
from palisade_client._wire import KEY_ID_HEADER, KIND_HEADER, SIGNATURE_HEADER, signature_holds

MAX_TTL_MS = 3_600_000
"""No directive lives longer (R2)."""
MAX_LIMITS = 1_000
"""Caller limits in one directive."""
MAX_GUARDS = 64
"""Guards whose share of the limits one directive names."""

LEAST_PROBE_SHARE = 1e-9
"""A smaller share of probes is none."""

Refused = Literal[
    "no_keys",
    "unsigned",
    "unknown_key",
    "bad_signature",
    "undecodable",
    "wrong_endpoint",
    "ttl_above_maximum",
    "lower_epoch",
    "older_issue",
]


@dataclass(frozen=True, slots=True)
class Orders:
    """What is enforced: the fallback until `route_until`, every `probe_every`-th call a probe (0 = none), the limits."""

    route_until: float = float("-inf")
    probe_every: int = 0
    limits: Mapping[str, Limit] = field(default_factory=dict)


NOTHING = Orders()


@dataclass(frozen=True, slots=True)
class _Directive:
    endpoint: str
    epoch: int
    issued_ms: int
    ttl_ms: int
    enforce: bool
    fallback: bool
    probe_share: float
    limits: tuple[tuple[str, float, int, str], ...]  # caller, rate per second, ttl_ms, action id
    guard_shares: Mapping[str, float]
    other_share: float

    @classmethod
    def parse(cls, value: bytes) -> _Directive:
        """The directive of `value`; ValueError, TypeError, KeyError, AttributeError, RecursionError or OverflowError
        on anything else."""
        fields = json.loads(value)
        limits = [
            (_text(x["caller"]), _number(x["rate_per_s"]), _whole(x["ttl_ms"]), _text(x["action_id"]))
            for x in fields.get("limits", [])
        ]
        mode, route = fields["mode"], fields.get("route", "primary")
        guard_shares = {guard: _share(share) for guard, share in fields.get("guard_shares", {}).items()}
        if mode not in ("observe", "enforce") or route not in ("primary", "fallback"):
            raise ValueError("unknown mode or route")
        if len(limits) > MAX_LIMITS or len(guard_shares) > MAX_GUARDS:
            raise ValueError("out of bounds")
        return cls(
            _text(fields["endpoint"]),
            _whole(fields["epoch"]),
            _whole(fields["issued_ms"]),
            _whole(fields["ttl_ms"]),
            mode == "enforce",
            route == "fallback",
            _share(fields.get("probe_share", 0.05)),
            tuple(limits),
            guard_shares,
            _share(fields.get("other_share", 1.0)),
        )

    @property
    def longest_ttl_ms(self) -> int:
        return max(self.ttl_ms, *(limit[2] for limit in self.limits), 0)


class DirectiveState:
    """The directive and the kill switch that hold for one endpoint. Not thread-safe: its owner holds a lock.

    A directive is refused for a missing, bad or unknown signature, an epoch below the highest seen, an issue older than
    the one of the same epoch, a ttl above one hour. The deadline of its route, and of each of its limits by their own
    ttl, is receipt + ttl - age, and never later than the same epoch had it before; so no clock, replay or re-sending
    can extend an action. Of each limit this process admits the share of its `guard_id`.
    """

    def __init__(self, endpoint: str, keys: PublicKeys, guard_id: str) -> None:
        self.endpoint = endpoint
        self.guard_id = guard_id
        self.epoch = 0
        self.killed = False
        self.refusals: dict[str, int] = {}
        self._keys = keys
        self._issued_ms = 0
        self._kill_issued_ms = -1
        self._deadline = float("-inf")
        self._limit_deadlines: dict[str, float] = {}
        self._directive: _Directive | None = None

    def concerns(self, record: Record) -> bool:
        """True for the kill switch and for directives of this endpoint: other endpoints share the partition."""
        kind = record.headers.get(KIND_HEADER)
        return record.value is not None and (kind == b"kill" or (kind == b"directive" and record.key == self.endpoint))

    def accept_kill(self, record: Record) -> Refused | None:
        """Takes a kill switch; an older one than the last (a replayed `unkill`) changes nothing."""
        value = record.value or b""
        refused = self._verify(record, "kill", value)
        if refused is None:
            try:
                fields = json.loads(value)
                kill, issued_ms = fields["kill"], _whole(fields["issued_ms"])
            except (ValueError, TypeError, KeyError, RecursionError):
                return self._refuse("undecodable")
            if issued_ms < self._kill_issued_ms:
                return self._refuse("older_issue")
            self._kill_issued_ms = issued_ms
            self.killed = kill is not False
            return None
        return self._refuse(refused)

    def accept(self, record: Record, now: float, age_s: float) -> Refused | None:
        """Takes a directive that was received at `now`, `age_s` after it was written; the reason if it is refused."""
        value = record.value or b""
        refused = self._verify(record, "directive", value)
        if refused is not None:
            return self._refuse(refused)
        try:
            directive = _Directive.parse(value)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            return self._refuse("undecodable")
        if directive.endpoint != self.endpoint:
            return self._refuse("wrong_endpoint")
        if directive.longest_ttl_ms > MAX_TTL_MS:
            return self._refuse("ttl_above_maximum")
        if directive.epoch < self.epoch:
            return self._refuse("lower_epoch")
        if directive.epoch == self.epoch and directive.issued_ms < self._issued_ms:
            return self._refuse("older_issue")
        self._apply(directive, now - max(0.0, age_s))
        return None

    @property
    def share(self) -> float:
        """How much of each limit this process admits, 0 to 1."""
        directive = self._directive
        return 1.0 if directive is None else directive.guard_shares.get(self.guard_id, directive.other_share)

    def orders(self, *, may_fall_back: bool) -> Orders:
        """What to enforce, the kill switch aside; each order carries its own deadline."""
        directive = self._directive
        if directive is None or not directive.enforce:
            return NOTHING
        share = self.share
        limits = {
            caller: Limit(rate * share, self._limit_deadlines[caller], action_id)
            for caller, rate, _, action_id in directive.limits
        }
        falls_back = directive.fallback and may_fall_back
        return Orders(
            self._deadline if falls_back else float("-inf"),
            round(1 / directive.probe_share) if directive.probe_share >= LEAST_PROBE_SHARE else 0,
            limits,
        )

    def _apply(self, directive: _Directive, written_at: float) -> None:
        same_epoch = directive.epoch == self.epoch and self._directive is not None
        deadline = written_at + directive.ttl_ms / 1000
        self._deadline = min(deadline, self._deadline) if same_epoch else deadline
        earlier = self._limit_deadlines if same_epoch else {}
        deadlines = {caller: written_at + ttl_ms / 1000 for caller, _, ttl_ms, _ in directive.limits}
        self._limit_deadlines = {caller: min(at, earlier.get(caller, at)) for caller, at in deadlines.items()}
        self.epoch, self._issued_ms, self._directive = directive.epoch, directive.issued_ms, directive

    def _verify(self, record: Record, kind: str, value: bytes) -> Refused | None:
        if not self._keys:
            return "no_keys"
        signature, key_id = record.headers.get(SIGNATURE_HEADER), record.headers.get(KEY_ID_HEADER)
        if signature is None or key_id is None:
            return "unsigned"
        key = self._keys.get(key_id.decode("ascii", "replace"))
        if key is None:
            return "unknown_key"
        return None if signature_holds(key, kind, value, signature) else "bad_signature"

    def _refuse(self, reason: Refused) -> Refused:
        self.refusals[reason] = self.refusals.get(reason, 0) + 1
        return reason


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a whole number")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < float("inf"):
        raise ValueError("not a finite number of at least 0")
    return float(value)


def _share(value: Any) -> float:
    share = _number(value)
    if share > 1:
        raise ValueError("not a share from 0 to 1")
    return share


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("not a text")
    return value
