"""What a Guard follows, what it refuses, and when it stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from palisade_client import CallerLimited
from palisade_client._directives import DirectiveState
from palisade_client._keys import public_keys
from palisade_client.testing import START_MS, ManualClock, ThrowawayKey, directive, kill_switch

from tests.client.conftest import ENDPOINT, Bench


def model(features: Any) -> float:
    return 0.9


def served(bench: Bench, guard: Any) -> float:
    return guard.call(model, {"x": 1.0}, caller="carol")  # type: ignore[no-any-return]


def test_the_route_of_a_directive_is_followed(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback"))

    assert served(bench, guard) == 0.5


def test_a_directive_found_at_the_start_is_followed_once_the_partition_is_read(bench: Bench) -> None:
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback"))

    assert served(bench, bench.guard(fallback=0.5)) == 0.5


def test_until_the_partition_is_read_the_primary_serves(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5)
    bench.transport.follow = lambda endpoint, follower: bench.transport.followers.append(follower)  # type: ignore[method-assign]
    guard.start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback"))
    before = served(bench, guard)
    bench.transport.followers[0].on_end()

    assert (before, served(bench, guard)) == (0.9, 0.5)


def test_observe_is_followed_in_nothing(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(
        directive(ENDPOINT, bench.key, mode="observe", route="fallback", limits={"carol": 0.0}, epoch=4)
    )
    guard.flush()

    assert (served(bench, guard), bench.report.epoch_applied) == (0.9, 4)


def test_an_action_ends_at_its_deadline(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback", ttl_ms=60_000))
    bench.clock.advance(59.9)
    before = served(bench, guard)
    bench.clock.advance(0.2)

    assert (before, served(bench, guard)) == (0.5, 0.9)


def test_a_limit_ends_at_its_own_deadline(bench: Bench) -> None:
    guard = bench.guard().start()
    limits = [
        {"caller": "carol", "rate_per_s": 0.0, "ttl_ms": 5_000, "action_id": "a1"},
        {"caller": "dave", "rate_per_s": 0.0, "ttl_ms": 9_000, "action_id": "a2"},
    ]
    record = bench.key.signed(
        "directive",
        ENDPOINT,
        {"endpoint": ENDPOINT, "epoch": 1, "issued_ms": 1, "ttl_ms": 9_000, "mode": "enforce", "limits": limits},
    )
    bench.transport.deliver(record)
    bench.clock.advance(6.0)

    assert served(bench, guard) == 0.9
    with pytest.raises(CallerLimited, match="dave"):
        guard.call(model, {}, caller="dave")


def test_sending_again_in_one_epoch_does_not_extend_an_action(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback", ttl_ms=60_000))
    bench.clock.advance(50)
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback", ttl_ms=60_000))
    bench.clock.advance(11)

    assert served(bench, guard) == 0.9


def test_a_new_epoch_renews_an_action(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback", ttl_ms=60_000))
    bench.clock.advance(50)
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback", ttl_ms=60_000, epoch=2))
    bench.clock.advance(11)

    assert served(bench, guard) == 0.5


def test_at_the_start_a_directive_is_as_old_as_the_broker_says(bench: Bench) -> None:
    """The machine's wall clock is an hour behind; the broker's time of the first report tells the age all the same."""
    bench.transport.broker_ms = START_MS + 3_600_000
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback", ttl_ms=60_000, timestamp_ms=START_MS))
    stale = served(bench, bench.guard(fallback=0.5))

    fresh = Bench()
    fresh.transport.broker_ms = START_MS + 3_600_000
    fresh.transport.deliver(
        directive(ENDPOINT, fresh.key, route="fallback", ttl_ms=60_000, timestamp_ms=START_MS + 3_590_000)
    )
    guard = fresh.guard(fallback=0.5)
    first = served(fresh, guard)
    fresh.clock.advance(51)

    assert (stale, first, served(fresh, guard)) == (0.9, 0.5, 0.9)


def test_without_a_time_of_the_broker_the_wall_clock_tells_the_age(bench: Bench) -> None:
    bench.transport.deliver(
        directive(ENDPOINT, bench.key, route="fallback", ttl_ms=60_000, timestamp_ms=START_MS - 61_000)
    )

    assert served(bench, bench.guard(fallback=0.5)) == 0.9


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("unsigned", lambda key, r: r._replace(headers={"palisade-kind": b"directive"})),
        ("bad_signature", lambda key, r: r._replace(value=r.value.replace(b'"epoch": 2', b'"epoch": 3'))),
        ("bad_signature", lambda key, r: r._replace(headers={**r.headers, "palisade-signature": b"no base64"})),
        ("unknown_key", lambda key, r: directive(ENDPOINT, ThrowawayKey(), route="fallback", epoch=2)),
        ("ttl_above_maximum", lambda key, r: directive(ENDPOINT, key, route="fallback", epoch=2, ttl_ms=3_600_001)),
        ("lower_epoch", lambda key, r: directive(ENDPOINT, key, route="fallback", epoch=0)),
        ("older_issue", lambda key, r: directive(ENDPOINT, key, route="fallback", epoch=1, issued_ms=1)),
        ("wrong_endpoint", lambda key, r: directive("other", key, route="fallback")._replace(key=ENDPOINT)),
        ("undecodable", lambda key, r: key.signed("directive", ENDPOINT, {"endpoint": ENDPOINT})),
        ("undecodable", lambda key, r: directive(ENDPOINT, key, route="fallback", epoch=2, probe_share=7)),
        ("undecodable", lambda key, r: directive(ENDPOINT, key, epoch=2, limits={f"c{i}": 1.0 for i in range(1001)})),
        ("undecodable", lambda key, r: directive(ENDPOINT, key, epoch=2, limits={"c": float("nan")})),
        ("undecodable", lambda key, r: directive(ENDPOINT, key, epoch=2, other_share=1.01)),
        ("undecodable", lambda key, r: directive(ENDPOINT, key, epoch=2, guard_shares={"g": -0.1})),
        ("undecodable", lambda key, r: directive(ENDPOINT, key, epoch=2, guard_shares=["g"])),
        ("undecodable", lambda key, r: directive(ENDPOINT, key, epoch=2, guard_shares={f"g{i}": 0 for i in range(65)})),
    ],
)
def test_a_directive_is_refused_and_reported(bench: Bench, reason: str, spoil: Any) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="primary", epoch=1))
    bench.transport.deliver(spoil(bench.key, directive(ENDPOINT, bench.key, route="fallback", epoch=2)))
    guard.flush()

    assert served(bench, guard) == 0.9
    assert bench.report.directive_refused == reason
    assert bench.report.epoch_applied == 1
    assert guard.status()["directives_refused"] == {reason: 1}


def test_a_directive_signed_as_another_kind_is_refused(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5).start()
    value = directive(ENDPOINT, bench.key, route="fallback")
    as_command = bench.key.signed("command", ENDPOINT, {})
    headers = {**as_command.headers, "palisade-kind": b"directive"}
    bench.transport.deliver(as_command._replace(value=value.value, headers=headers))

    assert served(bench, guard) == 0.9
    assert guard.status()["directives_refused"] == {"bad_signature": 1}


def test_without_keys_a_guard_only_observes_and_says_so(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    guard = bench.guard(fallback=0.5, directive_keys=None).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback"))
    guard.flush()

    assert served(bench, guard) == 0.9
    assert bench.report.directive_refused == "no_keys"
    assert [r for r in caplog.records if "NO DIRECTIVE KEYS" in r.getMessage()]


def test_directives_of_other_endpoints_on_the_partition_concern_nobody(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(directive("other", bench.key, route="fallback"))
    bench.transport.deliver(directive(ENDPOINT, bench.key)._replace(value=None))
    guard.flush()

    assert (served(bench, guard), bench.report.directive_refused) == (0.9, None)


@pytest.mark.parametrize("way", ["record", "file", "environment"])
def test_while_killed_nothing_is_enforced(
    bench: Bench, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kill"
    guard = bench.guard(fallback=0.5, kill_file=file).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback", limits={"carol": 0.0}))
    kill: dict[str, Callable[[], Any]] = {
        "record": lambda: bench.transport.deliver(kill_switch(bench.key)),
        "file": file.touch,
        "environment": lambda: monkeypatch.setenv("PALISADE_KILL", "1"),
    }
    unkill: dict[str, Callable[[], Any]] = {
        "record": lambda: bench.transport.deliver(kill_switch(bench.key, kill=False, issued_ms=START_MS + 1)),
        "file": file.unlink,
        "environment": lambda: monkeypatch.delenv("PALISADE_KILL"),
    }
    kill[way]()
    bench.clock.advance(0.5)
    guard.flush()
    killed = served(bench, guard), bench.report.killed
    unkill[way]()
    bench.clock.advance(0.5)
    guard.flush()

    assert killed == (0.9, True)
    assert not bench.report.killed
    with pytest.raises(CallerLimited):
        served(bench, guard)


def test_a_replayed_unkill_does_not_end_a_kill(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(
        kill_switch(bench.key, kill=False, issued_ms=5),
        kill_switch(bench.key, issued_ms=10),
        kill_switch(bench.key, kill=False, issued_ms=5),
    )
    guard.flush()

    assert bench.report.killed


def test_a_forged_kill_is_refused(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(kill_switch(ThrowawayKey()))
    guard.flush()

    assert (bench.report.killed, bench.report.directive_refused) == (False, "unknown_key")


_KEY = ThrowawayKey()
_STEPS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(1, 3_600_000), st.floats(0, 4000)), max_size=12
)


@settings(deadline=None)
@given(_STEPS)
def test_the_epoch_never_goes_down_and_no_action_outlives_its_ttl(steps: list[tuple[int, int, int, float]]) -> None:
    clock = ManualClock()
    state = DirectiveState(ENDPOINT, public_keys(_KEY.public), "guard-1")
    epoch, deadlines = 0, {0: float("-inf")}
    for at_epoch, issued_ms, ttl_ms, pause in steps:
        clock.advance(pause)
        record = directive(ENDPOINT, _KEY, route="fallback", epoch=at_epoch, issued_ms=issued_ms, ttl_ms=ttl_ms)
        refused = state.accept(record, clock.monotonic(), 0.0)
        until = state.orders(may_fall_back=True).route_until

        assert state.epoch >= epoch
        if refused is None:
            assert until <= clock.monotonic() + ttl_ms / 1000
            assert at_epoch not in deadlines or at_epoch == 0 or until <= deadlines[at_epoch]
            deadlines[at_epoch] = until
        epoch = state.epoch


@pytest.mark.parametrize("probe_share", [0, 5e-324, 1e-320])
def test_so_small_a_share_of_probes_is_none(bench: Bench, probe_share: float) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback", probe_share=probe_share))

    assert {served(bench, guard) for _ in range(50)} == {0.5}


def test_a_rate_that_no_float_holds_is_refused_and_what_held_before_goes_on(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback"))
    limit = {"caller": "carol", "rate_per_s": 10**400, "ttl_ms": 1000, "action_id": "a"}
    fields = {
        "endpoint": ENDPOINT,
        "epoch": 2,
        "issued_ms": START_MS,
        "ttl_ms": 1000,
        "mode": "enforce",
        "limits": [limit],
    }
    bench.transport.deliver(bench.key.signed("directive", ENDPOINT, fields))

    assert (served(bench, guard), guard.status()["directives_refused"]) == (0.5, {"undecodable": 1})
