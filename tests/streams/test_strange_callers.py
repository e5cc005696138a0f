"""A caller who maps the model with rows from all over the features' ranges: from the log to a limit of that caller alone."""

from __future__ import annotations

import json

import numpy as np

from tests.streams.log_of_predictions import open_log
from tests.streams.test_only_garbage import SENT, event, limited, log_of, log_of_garbage, usual
from tests.streams.test_prediction_log import feed, table_of

MAPPED = 48
"""Rows of the one caller."""


def mapping(caller: str, **fields: object) -> list[bytes]:
    rng = np.random.default_rng(8)
    features = [
        {
            "amount": float(rng.uniform(0, 400)),
            "age": float(rng.uniform(0, 400)),
            "plan": str(rng.choice(["free", "pro"])),
        }
        for _ in range(MAPPED)
    ]
    return [json.dumps(event(caller, features=each, **fields)).encode() for each in features]


def test_who_maps_the_model_is_limited_and_nobody_else() -> None:
    assert limited(log_of(mapping("mallory"))) == ({"mallory"}, False)


def test_whom_nobody_vouched_for_limits_nobody_of_that_name() -> None:
    assert limited(log_of(mapping("good-1", caller_auth="claimed"))) == (set(), False)


def test_usual_rows_limit_nobody() -> None:
    rng = np.random.default_rng(4)
    rows = [json.dumps(event("busy", features=usual(rng))).encode() for _ in range(400)]

    assert limited(log_of(rows)) == (set(), False)


def test_every_scored_row_of_a_closed_block_has_one_p_value_and_a_dead_letter_none() -> None:
    out = feed(open_log(), log_of_garbage(), [])
    outcome_of = {(row["offset"], row["row"]): row["outcome"] for row in table_of(out, b"verdict_rows")}

    judged = table_of(out, b"verdict_p_values")

    assert len(judged) == len({(row["offset"], row["row"]) for row in judged}) == 3 * SENT
    assert all(outcome_of[row["offset"], row["row"]] == 0 for row in judged)
    assert all(0 < float(str(row["p_value"])) <= 1 for row in judged)


def test_p_values_do_not_depend_on_the_runs() -> None:
    log = log_of(mapping("mallory"))

    whole, cut = (table_of(feed(open_log(), log, cuts), b"verdict_p_values") for cuts in ([], [7, 50, 51, 120]))

    assert whole == cut
