"""A made training table that behaves like real rows: slow weather, a steady mix, a daily cycle, holes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from detectors.base import Budget
from detectors.profile import Profile
from detectors.profile_build import build_profile
from schemas.blocks import BLOCK_ROWS, MISSING, Block, Codes, Floats, RowId

ROWS = 24_000
BUDGET = Budget(1.0, 100_000 / 30)
"""1 alarm in 100,000 rows."""
ENDPOINT = "flights"
PLACES = ("ams", "bru", "cdg", "dus", "fra")


def columns(rows: int = ROWS, seed: int = 1) -> dict[str, npt.NDArray[np.float64] | list[str]]:
    """Rows in their order: `warmth` drifts slowly, `hour` cycles, `size`, `load` and `place` are independent."""
    rng = np.random.default_rng(seed)
    slow = np.repeat(np.cumsum(rng.normal(0, 1, rows // 50 + 1)), 50)[:rows]
    slow = 15 + 6 * np.sin(np.arange(rows) / 2_000) + 0.05 * (slow - slow.mean())
    holes = rng.random(rows) < 0.02
    return {
        "at": np.arange(rows, dtype=np.float64),
        "warmth": np.where(holes, np.nan, slow + rng.normal(0, 1, rows)),
        "hour": (np.arange(rows) // 25 % 24).astype(np.float64),
        "size": rng.gamma(4.0, 250.0, rows),
        "load": rng.normal(0, 1, rows),
        "place": np.array(PLACES)[rng.choice(5, rows, p=[0.4, 0.3, 0.15, 0.1, 0.05])].tolist(),
    }


@cache
def table() -> pa.Table:
    return pa.table(columns())


@cache
def profile() -> Profile:
    return build_profile(table(), order_by="at")


@cache
def profile_hash() -> str:
    return profile().hash


def decoded(data: pa.Table, by: Profile) -> tuple[Floats, Codes]:
    """What decoding makes of a table: numbers, and codes of the profile's categories."""
    features = by.features
    numbers = [data.column(name).to_numpy().astype(np.float64) for name in features.numeric]
    codes = [
        np.array([values.index(word) if word in values else -2 for word in data.column(name).to_pylist()], np.int32)
        for name, values in zip(features.categorical, features.categories, strict=True)
    ]
    rows = data.num_rows
    return (
        np.stack(numbers, axis=1) if numbers else np.zeros((rows, 0)),
        np.stack(codes, axis=1) if codes else np.zeros((rows, 0), np.int32),
    )


def make_block(
    numeric: Floats,
    categorical: Codes,
    *,
    first: int = 0,
    endpoint: str = ENDPOINT,
    callers: Sequence[str] = ("anyone",),
    of_caller: Codes | None = None,
    verified: Sequence[bool] | None = None,
    served_by: int = 0,
) -> Block:
    """A block of rows that begins at offset `first`; arrays read-only, as real ones are."""
    n = len(numeric)
    arrays = {
        "offsets": np.arange(first, first + n),
        "rows": np.zeros(n, np.int32),
        "ts": np.full(n, first * 20),
        "broker_ts": np.full(n, first * 20),
        "numeric": np.array(numeric),
        "categorical": np.array(categorical),
        "caller": np.zeros(n, np.int32) if of_caller is None else np.array(of_caller, np.int32),
        "verified": np.array(verified if verified is not None else [True] * len(callers)),
        "flags": np.zeros(n, np.uint32),
        "latency_ms": np.full(n, np.nan),
        "status": np.zeros(n, np.uint8),
        "served_by": np.full(n, served_by, np.uint8),
        "value": np.full(n, np.nan),
        "label": np.full(n, MISSING, np.int32),
        "confidence": np.full(n, np.nan),
        "weight": np.ones(n),
    }
    for array in arrays.values():
        array.flags.writeable = False
    return Block(
        endpoint=endpoint,
        version="v1",
        profile_hash=profile_hash(),
        topic="palisade.predictions",
        partition=0,
        callers=tuple(callers),
        closed_by="rows",
        closed_at=RowId(first + n - 1, 0),
        closed_ms=(first + n) * 20,
        **arrays,  # type: ignore[arg-type]
    )


@cache
def rows() -> tuple[Floats, Codes]:
    """The training rows as decoded."""
    return decoded(table(), profile())


def ordered_blocks(start: int, count: int, *, size: int = BLOCK_ROWS, endpoint: str = ENDPOINT) -> list[Block]:
    """Blocks of training rows in order from row `start`."""
    numeric, categorical = rows()
    return [
        make_block(numeric[at : at + size], categorical[at : at + size], first=at, endpoint=endpoint)
        for at in range(start, start + count * size, size)
    ]
