from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palisade.demo import data
from palisade.demo.data import FEATURES, NUMERIC, ORIGINS, UNIT_CHANGES, endpoint_of, flights, origin_of, replay
from schemas.ids import is_plain_id


def test_features_hold_nothing_that_is_known_after_departure():
    leaks = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "late15", "carrier", "caller"}

    assert not leaks & set(FEATURES)


def test_no_week_is_both_trained_on_and_replayed():
    year = flights()
    trained, replayed = year.rows(training=True), year.rows(training=False)

    assert not set(year.week[trained]) & set(year.week[replayed])
    assert len(trained) + len(replayed) == len(year.week)


def test_the_training_table_is_one_airport_in_real_order():
    table = data.training_table("LGA")
    departs = table["departs"].to_numpy()

    assert table["position"].to_pylist() == list(range(len(departs)))
    assert {caller.split("@")[1] for caller in table["caller"].unique().to_pylist()} == {"LGA"}
    days = np.flatnonzero(np.diff(departs) < 0)
    assert 150 < len(days) < 200  # the clock goes back once a day, some 27 weeks of days


def test_a_cancelled_flight_is_asked_about_but_has_no_label():
    table = data.training_table("EWR")

    assert 0.01 < table["late15"].null_count / len(table) < 0.1
    assert all(table[name].null_count == 0 for name in FEATURES)


def test_the_replay_is_real_rows_in_real_order_with_each_caller_at_its_share():
    year = flights()
    requests = list(islice(replay(7), len(year.rows(training=False))))
    asked = Counter(request.caller for request in requests)

    assert all(is_plain_id(caller) for caller in asked)
    for caller, share in data.caller_shares().items():
        assert asked[caller] / len(requests) == pytest.approx(share)
    in_order = [year.columns["distance"][row] for row in year.rows(training=False)]
    start = next(
        at for at in range(len(in_order)) if [r.features["distance"] for r in requests[:30]] == in_order[at : at + 30]
    )
    assert [r.features["distance"] for r in requests] == in_order[start:] + in_order[:start]


def test_the_replay_asks_150_times_a_second_without_long_gaps():
    gaps = np.array([request.gap_s for request in islice(replay(3), len(flights().rows(training=False)))])

    assert gaps.max() <= 0.5
    assert 1 / gaps.mean() == pytest.approx(150, rel=0.01)


def test_the_city_is_asked_as_often_as_an_airport_about_flights_of_all_three():
    asked = list(islice(data.city_replay(3), 3000))

    assert {request.endpoint for request in asked} == {"flights-nyc"}
    assert {request.caller.partition("@")[2] for request in asked} == set(ORIGINS)
    whole = np.array(
        [request.gap_s for request in islice(data.city_replay(3), len(flights().rows(training=False)) // 3)]
    )
    assert 1 / whole.mean() == pytest.approx(50, rel=0.01)


def test_a_seed_chooses_the_start_and_nothing_else():
    def first(seed: int) -> list[data.Request]:
        return list(islice(replay(seed), 50))

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_each_airport_has_an_endpoint():
    assert [origin_of(endpoint_of(origin)) for origin in ORIGINS] == list(ORIGINS)
    with pytest.raises(ValueError, match="flights-ewr"):
        origin_of("flights-sfo")


def test_the_rows_of_a_flooding_caller_are_its_own():
    rows = list(islice(data.caller_rows("HA@JFK"), 400))

    assert {row["dest"] for row in rows} == {"HNL"}
    with pytest.raises(ValueError, match="NO@ONE"):
        next(data.caller_rows("NO@ONE"))


def test_drawn_rows_are_rows_that_no_flight_ever_was_within_the_ranges_of_all():
    training = data.training_table("LGA")
    drawn = list(islice(data.drawn_rows("LGA", 5), 200))

    for name in NUMERIC:
        known = training[name].to_numpy()
        values = [row[name] for row in drawn]
        assert known.min() <= min(values)
        assert max(values) <= known.max()
        assert max(values) - min(values) > 0.9 * (known.max() - known.min())
    assert {row["dest"] for row in drawn} <= set(training["dest"].to_pylist())
    flown = set(zip(training["dest"].to_pylist(), training["distance"].to_pylist(), strict=True))
    assert not flown & {(row["dest"], row["distance"]) for row in drawn}
    assert list(islice(data.drawn_rows("LGA", 5), 3)) == drawn[:3]
    assert next(data.drawn_rows("LGA", 6)) != drawn[0]


def test_a_unit_change_touches_its_feature_alone():
    features = next(replay(1)).features

    for change in UNIT_CHANGES.values():
        assert change.feature in NUMERIC
        changed = change.apply(features)
        assert {name for name in features if changed[name] != features[name]} == {change.feature}
    assert UNIT_CHANGES["temp_c"].apply({"temp": 212.0})["temp"] == pytest.approx(100)
    assert UNIT_CHANGES["temp_c"].apply({"temp": None}) == {"temp": None}


@given(gaps=st.lists(st.floats(0.01, 1e4), min_size=2, max_size=50), rate=st.floats(3.0, 1e4), zeros=st.integers(0, 20))
def test_scaled_gaps_have_the_wanted_mean_and_none_is_longer_than_the_cut(gaps, rate, zeros):
    scaled = data.scaled_gaps(np.array([0.0] * zeros + gaps), rate, 40.0)

    assert scaled.mean() == pytest.approx(1 / rate)
    assert scaled.max() <= 40.0


def test_gaps_that_are_mostly_zero_cannot_be_scaled():
    with pytest.raises(ValueError, match="no factor"):
        data.scaled_gaps(np.array([0.0] * 99 + [1.0]), rate_per_s=1.0, max_gap_s=0.5)
