"""What do the inputs of a version look like that nobody profiled? Its first rows become its profile, and it is said.

The first `SCHEMA_ROWS` rows vote on the schema; the rows of the blocks after them are the table, as stretches of 256
rows in the order of the log, so that thresholds come from the block bootstrap as with a training table. A function of
the log alone: equal blocks give an equal profile, whatever the cut or the restart. What is learned may hold the attack
itself, so it is weaker evidence than an approved profile: drift from it is never more than a warning.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from detectors.base import LogPoint, Reading, Undo, part_of
from detectors.caller_weights import capped_totals, of_a_model
from detectors.profile import Profile
from detectors.profile_build import Coded, categorical_feature, numeric_feature, profile_of, with_outputs
from detectors.profile_outputs import Answers
from detectors.report_state import pack, unpack
from detectors.schema_vote import SCHEMA_ROWS, SchemaVote
from schemas.blocks import BLOCK_ROWS, MISSING, ROUTE_CODES, Block, FeatureSchema, Floats, RowId
from schemas.errors import StateRefused
from schemas.events import MAX_NUMBER
from schemas.ids import stable_id
from schemas.outcomes import Outcomes

VERSION = 2
LEARN_ROWS = 40 * BLOCK_ROWS
"""40 blocks: fewer say little of how blocks differ; more would leave a version unwatched for longer."""
LEARN_MS = 600_000
"""And ten minutes of the log: what a busy endpoint sends within a second is no picture of its traffic."""
LEAST_ROWS = 4 * BLOCK_ROWS
"""Rows left when every caller weighs at most its cap; with fewer, one caller made the table: it is learned anew."""
MAX_LEARNERS, MAX_OF_ENDPOINT = 16, 4
"""Parts that learn at once in a partition, and of them versions of one endpoint. Others wait for a place."""
MAX_PARTS = 256
"""Parts of a partition that learn or have learned: versions that a stranger makes up must not become state."""
SILENT_MS = 3_600_000
"""A part that sent nothing for an hour gives its place away and begins anew."""
MAX_TABLE_BYTES = 216_000
"""Of a part's rows; a longer table keeps every second stretch. With the rest of the state below 256 kB."""
MAX_LEARNED_FEATURES = MAX_TABLE_BYTES // (2 * LEAST_ROWS) // 2 - 5
"""47: so many leave room for twice `LEAST_ROWS`; a wider version needs a profile that is built."""
SAY_EVERY_MS = 1_000
CALM_EVERY_MS = 10_000
_MAX_HALF = 60_000.0
_COLUMNS = {"numbers": "<f2", "codes": "<i2", "who": "<u2", "centre": "<f8", "scale": "<f8"}

Halves = npt.NDArray[np.float16]
Shorts = npt.NDArray[np.int16]
Identities = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class _Table:
    """Kept rows in log order. numbers [n, numeric] float16 are (value - centre) / scale: 0.05 % of the distance from
    the centre; codes [n, categorical]; who [n] the caller's number, 0 for all that nobody vouched for. Score and confidence
    come after the numeric features, the label after the categorical ones.

    Of the rows that came, those of every `step`-th stretch are kept, from the first one on.
    """

    numbers: Halves
    codes: Shorts
    who: Identities
    centre: Floats
    scale: Floats
    step: int = 1

    @classmethod
    def empty(cls, schema: FeatureSchema) -> _Table:
        n, c = len(schema.numeric) + 2, len(schema.categorical) + 1
        return cls(np.zeros((0, n), "<f2"), np.zeros((0, c), "<i2"), np.zeros(0, "<u2"), np.zeros(n), np.zeros(n))

    @property
    def capacity(self) -> int:
        """Whole stretches only, in rows."""
        width = 2 * (self.numbers.shape[1] + self.codes.shape[1] + 1)
        return int(MAX_TABLE_BYTES // width // BLOCK_ROWS * BLOCK_ROWS)

    def with_rows(self, block: Block, seen: npt.NDArray[np.bool_], first: int) -> _Table:
        """With the `seen` rows of a block, the first of which is the part's row number `first`."""
        answered = of_a_model(block)[seen]
        scores = np.where(answered, (block.value[seen], block.confidence[seen]), np.nan).T
        values = np.concatenate([block.numeric[seen], scores], axis=1)
        values = np.where(np.abs(values) <= MAX_NUMBER, values, np.nan)
        labels = np.where(answered, block.label[seen], MISSING)
        codes = np.concatenate([block.categorical[seen], labels[:, None]], axis=1)
        table = self._measured(values)
        number = first + np.arange(len(values))
        kept = (number // BLOCK_ROWS) % table.step == 0
        scaled = np.clip((values[kept] - table.centre) / table.scale, -_MAX_HALF, _MAX_HALF)
        table = replace(
            table,
            numbers=np.concatenate([table.numbers, scaled.astype("<f2")]),
            codes=np.concatenate([table.codes, codes[kept].astype("<i2")]),
            who=np.concatenate([table.who, _identities(block)[seen][kept]]),
        )
        return table if len(table.who) <= table.capacity else table._thinned()

    def numeric(self, at: int, kept: npt.NDArray[np.bool_]) -> Floats:
        """Values of a numeric feature in the kept rows."""
        return np.asarray(self.numbers[kept, at].astype(np.float64) * self.scale[at] + self.centre[at])

    def outcomes(self, kept: npt.NDArray[np.bool_]) -> Outcomes:
        """What was answered in the kept rows."""
        return Outcomes(self.numeric(-2, kept), self.codes[kept, -1].astype(np.int32), self.numeric(-1, kept))

    def fair(self) -> npt.NDArray[np.bool_]:
        """Rows [n] left when each caller has at most its cap of them, spread evenly over those of the caller."""
        if len(self.who) == 0:
            return np.zeros(0, np.bool_)
        _, caller, totals = np.unique(self.who, return_inverse=True, return_counts=True)
        share = (capped_totals(totals.astype(np.float64)) / totals)[caller]
        order = np.argsort(caller, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(totals) - totals, totals)
        return np.asarray(np.floor((rank + 1) * share + 1e-9) > np.floor(rank * share + 1e-9))

    def heaviest(self) -> float:
        """The share of the rows of the heaviest caller."""
        return float(np.unique(self.who, return_counts=True)[1].max() / len(self.who))

    def _measured(self, values: Floats) -> _Table:
        """Centre and scale of each feature, from the first block in which it has a value: only the range of float16 depends
        on them. A scale of 0 is not known yet."""
        fresh = (self.scale == 0) & ~np.isnan(values).all(axis=0)
        if not fresh.any():
            return self
        low, high = np.nanmin(values[:, fresh], axis=0), np.nanmax(values[:, fresh], axis=0)
        centre, scale = self.centre.copy(), self.scale.copy()
        centre[fresh] = low / 2 + high / 2
        scale[fresh] = np.maximum(high / 2 - low / 2, np.maximum(np.abs(centre[fresh]) * 1e-6, 1e-30))
        return replace(self, centre=centre, scale=scale)

    def _thinned(self) -> _Table:
        kept = (np.arange(len(self.who)) // BLOCK_ROWS) % 2 == 0
        return replace(self, numbers=self.numbers[kept], codes=self.codes[kept], who=self.who[kept], step=2 * self.step)


class Due(NamedTuple):
    """What a tick is to do, parts by name: decide the schema, build the profile, begin anew."""

    voted: list[str]
    ready: list[str]
    ended: list[str]

    def of(self, wanted: Callable[[str], bool]) -> Due:
        """What is to be done of the wanted parts."""
        return Due(*(list(filter(wanted, parts)) for parts in self))


_NO_ROW = RowId(-1, -1)


@dataclass(slots=True)
class _Part:
    """A part that learns. `rows` came since `first_ms`; `voted` is the last row that voted. `ready`: the table is
    complete; `spoilt`: one caller made it. `learned`: what is said of the finished profile, and nothing else is kept."""

    endpoint: str
    heard_ms: int
    vote: SchemaVote | None = field(default_factory=SchemaVote)
    voted: RowId = _NO_ROW
    schema: FeatureSchema | None = None
    table: _Table | None = None
    rows: int = 0
    first: RowId = _NO_ROW
    last: RowId = _NO_ROW
    first_ms: int = 0
    said_ms: int = -SAY_EVERY_MS
    ready: bool = False
    spoilt: bool = False
    learned: dict[str, int | str] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether it takes a place among those that learn."""
        return self.vote is not None or self.schema is not None


class Learning:
    """`learning` of a part (endpoint@version) without a profile; `Detector[Block]`.

    Says `unknown` with its progress while it learns, a warning when one caller made the table and it begins anew, and
    `info` once it has learned. Whoever cuts blocks lets rows vote, asks at each tick what is `due`, and has the profile
    built. A part takes 250 kB while it learns, 1 kB after.
    """

    name = "learning"
    log: Literal["predictions", "reports"] = "predictions"

    def __init__(self, rows: int = LEARN_ROWS, at_least_ms: int = LEARN_MS) -> None:
        self.rows = rows
        self.at_least_ms = at_least_ms
        self.hash = stable_id(self.name, VERSION, rows, at_least_ms, SCHEMA_ROWS, LEAST_ROWS, MAX_TABLE_BYTES)
        self._parts: dict[str, _Part] = {}
        self._places: Counter[str] | None = None
        """Places taken by endpoint; None: to be counted anew. Thousands of made-up versions may ask in one run."""

    def admit(self, endpoint: str, version: str, ms: int) -> bool:
        """Whether the part learns; a part met for the first time takes a place if there is one. `ms`: of its last row."""
        name = part_of(endpoint, version)
        part = self._parts.get(name)
        if part is None:
            if self._places is None:
                self._places = Counter(other.endpoint for other in self._parts.values() if other.open)
            full = self._places.total() >= MAX_LEARNERS or self._places[endpoint] >= MAX_OF_ENDPOINT
            if full or len(self._parts) >= MAX_PARTS:
                return False
            part = self._put(name, _Part(endpoint, ms))
        part.heard_ms = max(part.heard_ms, ms)
        return part.open

    def voters(self, name: str, rows: Sequence[RowId]) -> range:
        """Which of `rows` (in log order) are still to vote on the schema of a part."""
        part = self._parts[name]
        if part.vote is None:
            return range(0)
        start = sum(row <= part.voted for row in rows)
        return range(start, min(len(rows), start + SCHEMA_ROWS - part.vote.rows))

    def vote(
        self,
        name: str,
        row: RowId,
        features: Mapping[str, object] | Sequence[object] | None,
        label: str | None = None,
    ) -> None:
        """The features of a row, as they came, and the label that was answered, if one was, vote on the schema."""
        part = self._parts[name]
        assert part.vote is not None
        part.vote.add(features, label)
        part.voted = row

    def schema(self, name: str) -> FeatureSchema | None:
        """How rows of a part are decoded while it learns."""
        part = self._parts.get(name)
        return None if part is None else part.schema

    def learns(self, name: str) -> bool:
        """Whether blocks of a part bring its profile nearer."""
        part = self._parts.get(name)
        return part is not None and part.schema is not None

    def due(self, ms: int) -> Due:
        """What is to be done at a tick at `ms`."""
        parts = sorted(self._parts.items())
        return Due(
            [name for name, part in parts if part.vote is not None and part.vote.complete],
            [name for name, part in parts if part.ready],
            [name for name, part in parts if part.spoilt or (not part.learned and ms - part.heard_ms > SILENT_MS)],
        )

    def decide(self, name: str) -> None:
        """From now on the part is decoded by what its rows voted for; too many features, or none, are not learned."""
        part = self._parts[name]
        assert part.vote is not None
        schema, part.vote = part.vote.schema(), None
        self._places = None
        if 0 < len(schema.order) <= MAX_LEARNED_FEATURES:
            part.schema, part.table = schema, _Table.empty(schema)

    def build(self, name: str) -> Profile:
        """The profile of what a part that is `ready` has learned: a second or two of work at 20 features."""
        part = self._parts[name]
        assert part.schema is not None
        assert part.table is not None
        schema, table, kept = part.schema, part.table, part.table.fair()
        numeric, categorical, values, codes = [], [], [], []
        for at, feature in enumerate(schema.numeric):
            values.append(table.numeric(at, kept))
            numeric.append(numeric_feature(feature, values[-1]))
        for at, feature in enumerate(schema.categorical):
            raw = table.codes[kept, at].astype(np.int64)
            found, coded = categorical_feature(feature, schema.categories[at], raw)
            categorical.append(found)
            codes.append(coded)
        callers = table.who[kept].astype(np.int64)  # those whom nobody vouched for count as one
        coded_table = Coded(numeric, values, categorical, codes, callers)
        profile = profile_of(coded_table, schema.order, order_by=None, seed=0)
        return with_outputs(profile, Answers(table.outcomes(kept), list(schema.labels)))

    def finish(self, name: str, profile_hash: str) -> None:
        """The profile that the part has learned is in force; its table goes."""
        part = self._parts[name]
        learned: dict[str, int | str] = {
            "reason": "learned",
            "profile": profile_hash,
            "rows": part.rows,
            "first_offset": part.first.offset,
            "last_offset": part.last.offset,
            "first_ms": part.first_ms,
        }
        self._put(name, _Part(part.endpoint, part.heard_ms, vote=None, learned=learned))

    def update(self, batch: Sequence[Block]) -> list[Reading]:
        """At most one reading a second of a part that learns, one of each that has learned."""
        readings = []
        for block in batch:
            part = self._parts.get(part_of(block.endpoint, block.version))
            if part is None:
                continue
            reading = self._learned(block, part) if part.learned else self._learn(block, part)
            readings += [] if reading is None else [reading]
        return readings

    def snapshot(self, part: str) -> bytes:
        held = self._parts.get(part)
        return b"" if held is None else _packed(self.hash, held)

    def restore(self, part: str, state: bytes) -> None:
        self._put(part, _unpacked(self.hash, state))

    def undo(self, parts: Sequence[str]) -> Undo:
        """See `Reversible`."""
        held = {name: replace(part) for name in parts if (part := self._parts.get(name)) is not None}
        return lambda name: self._put_back(name, held.get(name))

    def _put_back(self, name: str, part: _Part | None) -> None:
        if part is None:
            self.forget(name)
        else:
            self._put(name, part)

    def forget(self, part: str) -> None:
        self._parts.pop(part, None)
        self._places = None

    def _put(self, name: str, part: _Part) -> _Part:
        self._parts[name] = part
        self._places = None
        return part

    def _learn(self, block: Block, part: _Part) -> Reading | None:
        part.heard_ms = max(part.heard_ms, block.closed_ms)  # rows of the same run may have been heard already
        spoilt = self._take(block, part)
        if spoilt is not None:
            return spoilt
        if 0 <= block.closed_ms - part.said_ms < SAY_EVERY_MS:
            return None
        part.said_ms = block.closed_ms
        if part.ready:
            return self._reading(block, part, calm=True, evidence={"reason": "complete", "rows": part.rows})
        evidence: dict[str, int | float | str] = {
            "reason": "learning" if part.open else "features_cannot_be_learned",
            "rows": part.rows,
            "of": self.rows,
        }
        return self._reading(block, part, known=False, evidence=evidence)

    def _take(self, block: Block, part: _Part) -> Reading | None:
        """Adds a block to the table; the reading that one caller made it, if so."""
        if part.schema is None or part.table is None or part.ready or part.spoilt or not _fits(part.schema, block):
            return None
        seen = block.served_by != ROUTE_CODES["refused"]  # no model saw those
        if part.rows == 0:
            part.first, part.first_ms = block.first, int(block.broker_ts[0])
        part.first_ms = min(part.first_ms, block.closed_ms)  # of a broker's clock that was set back
        part.table = part.table.with_rows(block, seen, part.rows)
        part.rows, part.last = part.rows + int(seen.sum()), block.last
        if part.rows < self.rows or block.closed_ms - part.first_ms < self.at_least_ms:
            return None
        left, heaviest = int(part.table.fair().sum()), part.table.heaviest()
        part.ready, part.spoilt = left >= LEAST_ROWS, left < LEAST_ROWS
        if part.ready:
            return None
        evidence: dict[str, int | float | str] = {
            "reason": "one_caller", "heaviest_share": heaviest, "rows": part.rows, "rows_left": left,
        }  # fmt: skip
        return self._reading(block, part, score=heaviest, severity="warning", evidence=evidence)

    def _learned(self, block: Block, part: _Part) -> Reading | None:
        """Said once, at the first block that the profile judges; calm from then on."""
        if block.profile_hash != part.learned["profile"]:
            return None
        first = part.said_ms < 0
        if not first and 0 <= block.closed_ms - part.said_ms < CALM_EVERY_MS:
            return None
        part.said_ms = max(block.closed_ms, 0)
        if not first:
            return self._reading(block, part, calm=True, evidence={})
        return self._reading(block, part, score=1.0, evidence=part.learned)

    def _reading(
        self,
        block: Block,
        part: _Part,
        *,
        evidence: Mapping[str, int | float | str],
        score: float = 0.0,
        calm: bool = False,
        known: bool = True,
        severity: Literal["info", "warning"] = "info",
    ) -> Reading:
        return Reading(
            detector=self.name,
            detector_hash=self.hash,
            kind="learning",
            endpoint=block.endpoint,
            version=block.version,
            subject_kind="endpoint",
            subject=block.endpoint,
            score=score,
            threshold=0.5,
            firing=score > 0.0,
            calm=calm,
            severity=severity,
            at=LogPoint.closing(block),
            first_ms=part.first_ms or int(block.broker_ts[0]),
            known=known,
            evidence=dict(evidence),
        )


def _fits(schema: FeatureSchema, block: Block) -> bool:
    """Whether a block was decoded by the schema that was voted."""
    shape = (block.numeric.shape[1], block.categorical.shape[1])
    return block.profile_hash == "" and shape == (len(schema.numeric), len(schema.categorical))


def _identities(block: Block) -> Identities:
    """A number [n] for each row's caller, 0 for every one that nobody vouched for."""
    names = [
        1 + zlib.crc32(name.encode()) % 65_535 if known else 0
        for name, known in zip(block.callers, block.verified.tolist(), strict=True)
    ]
    return np.array(names, "<u2")[block.caller]


def _packed(parameter_hash: str, part: _Part) -> bytes:
    schema, table = part.schema, part.table or _Table.empty(FeatureSchema((), (), (), ()))
    values: dict[str, Any] = {
        "endpoint": part.endpoint,
        "heard_ms": part.heard_ms,
        "vote": None if part.vote is None else part.vote.state(),
        "voted": part.voted,
        "schema": None if schema is None else list(astuple(schema)),
        "rows": part.rows,
        "first": part.first,
        "last": part.last,
        "first_ms": part.first_ms,
        "said_ms": part.said_ms,
        "ready": part.ready,
        "spoilt": part.spoilt,
        "learned": part.learned,
        "step": table.step,
    }
    return pack(parameter_hash, values, {name: getattr(table, name) for name in _COLUMNS})


def _unpacked(parameter_hash: str, state: bytes) -> _Part:
    values, columns = unpack(parameter_hash, state, _COLUMNS)
    try:
        schema = values["schema"]
        if schema is not None:
            numeric, categorical, categories, order, labels = schema
            schema = FeatureSchema(
                tuple(numeric), tuple(categorical), tuple(map(tuple, categories)), tuple(order), tuple(labels)
            )
        return _Part(
            endpoint=str(values["endpoint"]),
            heard_ms=int(values["heard_ms"]),
            vote=None if values["vote"] is None else SchemaVote.of(values["vote"]),
            voted=RowId(*values["voted"]),
            schema=schema,
            table=None if schema is None else _Table(**columns, step=int(values["step"])),
            rows=int(values["rows"]),
            first=RowId(*values["first"]),
            last=RowId(*values["last"]),
            first_ms=int(values["first_ms"]),
            said_ms=int(values["said_ms"]),
            ready=bool(values["ready"]),
            spoilt=bool(values["spoilt"]),
            learned=dict(values["learned"]),
        )
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise StateRefused(f"saved state cannot be read: {error}") from error
