"""Which features does a version send that nobody profiled, and which labels does it answer? Its first rows vote: names,
numbers or texts, categories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from detectors.profile import MAX_CATEGORIES, MAX_NAME
from schemas.blocks import FeatureSchema
from schemas.errors import StateRefused

SCHEMA_ROWS = 1_024
"""A category of 1 in 200 rows is among them with a chance of 99 %; rarer ones count as unseen, at their usual rate."""
LEAST_SHARE = 0.05
"""A name in fewer rows is no feature: one caller must not fill the schema with names of its own."""
MAX_WORD = 128
MAX_VOTE_BYTES = 32_000
"""Names and categories that are counted, as they are saved: names twice, 16 bytes beside each. Later ones are not."""

_LABELS = ""
"""Where labels are counted among the texts: no feature has this name."""


class SchemaVote:
    """Counts of `rows` rows of features: how often each name came as a number, and as which texts; and of labels."""

    def __init__(self) -> None:
        self.rows = 0
        self._lists = 0
        self._bytes = 0
        self._numbers: dict[str, int] = {}
        self._words: dict[str, dict[str, int]] = {}

    @property
    def complete(self) -> bool:
        return self.rows >= SCHEMA_ROWS

    def add(self, features: Mapping[str, object] | Sequence[object] | None, label: str | None = None) -> None:
        """One row as it came: by name, or in order (names "0", "1", ...); None: it could not be read again. `label`: what
        was answered."""
        self.rows += 1
        if label is not None:
            self._count(self._words.setdefault(_LABELS, {}), label)
        if features is None:
            return
        if not isinstance(features, Mapping):
            self._lists += 1
            features = {str(at): value for at, value in enumerate(features)}
        for name, value in features.items():
            if not 1 <= len(name) <= MAX_NAME or (name not in self._numbers and not self._room(name, 2)):
                continue
            self._numbers.setdefault(name, 0)
            words = self._words.setdefault(name, {})
            if isinstance(value, str | bool):
                self._count(words, value if isinstance(value, str) else str(value).lower())
            elif isinstance(value, int | float):
                self._numbers[name] += 1

    def schema(self) -> FeatureSchema:
        """What the rows agree on; no features where they agree on none."""
        # a list is read by position: none of them may be left out
        least = 0.0 if 2 * self._lists > self.rows else max(LEAST_SHARE * self.rows, 1.0)
        texts = {name: sum(words.values()) for name, words in self._words.items()}
        order = tuple(name for name, count in self._numbers.items() if count + texts[name] >= least)
        categorical = tuple(name for name in order if texts[name] > self._numbers[name])
        return FeatureSchema(
            numeric=tuple(name for name in order if name not in categorical),
            categorical=categorical,
            categories=tuple(self._categories(name) for name in categorical),
            order=order,
            labels=self._categories(_LABELS),
        )

    def state(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "lists": self._lists,
            "bytes": self._bytes,
            "numbers": self._numbers,
            "words": self._words,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> SchemaVote:
        """Takes back `state()`; raises StateRefused on anything else."""
        vote = cls()
        try:
            vote.rows, vote._lists, vote._bytes = (int(state[name]) for name in ("rows", "lists", "bytes"))
            vote._numbers = {str(name): int(count) for name, count in state["numbers"].items()}
            vote._words = {
                str(name): {str(word): int(count) for word, count in words.items()}
                for name, words in state["words"].items()
            }
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise StateRefused(f"the vote on features cannot be read: {error}") from error
        return vote

    def _categories(self, name: str) -> tuple[str, ...]:
        words = self._words.get(name, {})
        return tuple(sorted(words, key=lambda word: (-words[word], word))[:MAX_CATEGORIES])

    def _count(self, words: dict[str, int], word: str) -> None:
        if word in words or (len(word) <= MAX_WORD and self._room(word)):
            words[word] = words.get(word, 0) + 1

    def _room(self, text: str, times: int = 1) -> bool:
        size = times * (16 + len(json.dumps(text)))
        if self._bytes + size > MAX_VOTE_BYTES:
            return False
        self._bytes += size
        return True
