"""Who answers a guarded call: the model, a probe, the fallback, or nobody."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any

import pytest
from palisade_client import Answered, CallerLimited, Guard, PredictTimeout, current_caller, last_answer
from palisade_client._caller import Caller, caller_var
from palisade_client.testing import FakeTransport, directive

from tests.client.conftest import ENDPOINT, Bench


def broken(features: Any) -> float:
    raise ZeroDivisionError("the model is broken")


class Model:
    def predict(self, features: dict[str, float]) -> float:
        return features["x"] / 2


def routes(bench: Bench) -> dict[str, tuple[int, int, int]]:
    return {route.route: (route.served, route.errors, route.timeouts) for route in bench.report.routes}


@pytest.mark.parametrize(
    "fallback", [0.5, lambda features: features["x"] / 2, Model()], ids=["value", "function", "model"]
)
def test_an_exception_is_answered_with_the_fallback(bench: Bench, fallback: Any) -> None:
    guard = bench.guard(fallback=fallback)
    answer = guard.call(broken, {"x": 1.0}, caller="a")
    guard.flush()

    assert answer == 0.5
    assert routes(bench) == {"primary": (0, 1, 0), "fallback": (1, 0, 0)}
    assert (bench.predictions[0].status, bench.predictions[0].served_by) == ("error", "fallback")
    assert bench.predictions[0].prediction == 0.5


def test_without_a_fallback_the_model_s_exception_is_raised(bench: Bench) -> None:
    guard = bench.guard()
    with pytest.raises(ZeroDivisionError):
        guard.call(broken, {"x": 1.0}, caller="a")
    guard.flush()

    assert routes(bench) == {"primary": (0, 1, 0)}
    assert (bench.predictions[0].status, bench.predictions[0].served_by) == ("error", "primary")
    assert (bench.report.in_flight, bench.report.callers[0].served) == (0, 1)


def test_an_error_of_the_caller_s_making_is_no_failure_of_the_model(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5, client_errors=(ZeroDivisionError,))
    with pytest.raises(ZeroDivisionError):
        guard.call(broken, {"x": 1.0}, caller="a")
    guard.flush()

    assert routes(bench) == {}


def test_a_fallback_that_fails_leaves_the_model_s_exception(bench: Bench) -> None:
    guard = bench.guard(fallback=lambda features: features["missing"])
    with pytest.raises(ZeroDivisionError):
        guard.call(broken, {"x": 1.0}, caller="a")
    guard.flush()

    assert routes(bench) == {"primary": (0, 1, 0), "fallback": (0, 1, 0)}
    assert not bench.report.fallback_ok


def test_a_timeout_is_answered_with_the_fallback(bench: Bench) -> None:
    release = threading.Event()
    guard = bench.guard(fallback=0.5, timeout_s=0.02)
    answer = guard.call(lambda features: release.wait(10), {"x": 1.0}, caller="a")
    release.set()
    guard.flush()

    assert answer == 0.5
    assert routes(bench) == {"primary": (0, 0, 1), "fallback": (1, 0, 0)}
    assert bench.predictions[0].status == "timeout"


def test_without_a_fallback_a_timeout_is_raised(bench: Bench) -> None:
    release = threading.Event()
    guard = bench.guard(timeout_s=0.02)
    with pytest.raises(PredictTimeout, match="no answer within") as raised:
        guard.call(lambda features: release.wait(10), {}, caller="a")
    release.set()

    assert not raised.value.pool_full


def test_a_full_pool_is_answered_with_the_fallback_at_once(bench: Bench) -> None:
    release, entered = threading.Event(), threading.Semaphore(0)

    def hang(features: Any) -> float:
        entered.release()
        release.wait(30)
        return 0.9

    guard = bench.guard(fallback=0.5, timeout_s=30.0, max_inflight=2)
    callers = [threading.Thread(target=guard.call, args=(hang, {}), kwargs={"caller": "a"}) for _ in range(2)]
    for thread in callers:
        thread.start()
        entered.acquire(timeout=10)
    answer = guard.call(hang, {}, caller="b")
    guard.flush()
    in_flight, counted = bench.report.in_flight, routes(bench)
    release.set()
    for thread in callers:
        thread.join(10)

    assert (answer, in_flight) == (0.5, 2)
    assert counted == {"primary": (0, 0, 1), "fallback": (1, 0, 0)}


def test_a_pool_serves_again_when_a_hung_call_comes_back(bench: Bench) -> None:
    release, back = threading.Event(), threading.Event()

    def hang(features: Any) -> None:
        release.wait(10)
        back.set()

    guard = bench.guard(fallback=0.5, timeout_s=0.02, max_inflight=1)
    guard.call(hang, {}, caller="a")
    release.set()
    back.wait(10)
    answers = {guard.call(lambda features: 0.9, {}, caller="a") for _ in range(200)}

    assert 0.9 in answers


def test_the_pool_sees_the_caller_s_context(bench: Bench) -> None:
    guard = bench.guard(timeout_s=10.0)
    token = caller_var.set(Caller("dora", "verified"))
    seen = guard.call(lambda features: current_caller().id, {})
    caller_var.reset(token)
    guard.flush()

    assert seen == "dora"
    assert (bench.report.callers[0].caller, bench.report.callers[0].caller_auth) == ("dora", "verified")


def test_one_call_in_twenty_probes_the_primary(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback", probe_share=0.05))
    answers = [guard.call(lambda features: 0.9, {}, caller="a") for _ in range(100)]
    guard.flush()

    assert (answers.count(0.9), answers[0]) == (5, 0.5)
    assert routes(bench) == {"fallback": (95, 0, 0), "probe": (5, 0, 0)}
    assert [p.served_by for p in bench.predictions].count("probe") == 5


def test_a_probe_that_fails_is_answered_with_the_fallback(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback", probe_share=0.5))
    answers = {guard.call(broken, {}, caller="a") for _ in range(4)}
    guard.flush()

    assert answers == {0.5}
    assert routes(bench) == {"fallback": (4, 0, 0), "probe": (0, 2, 0)}


def test_no_probe_is_sent_at_a_share_of_zero(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback", probe_share=0))

    assert {guard.call(lambda features: 0.9, {}, caller="a") for _ in range(50)} == {0.5}


def test_an_unhealthy_fallback_is_not_routed_to(bench: Bench) -> None:
    failing = True

    def fallback(features: Any) -> float:
        if failing:
            raise OSError
        return 0.5

    guard = bench.guard(fallback=fallback).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback"))
    first = guard.call(lambda features: 0.9, {}, caller="a")
    guard.flush()
    while_bad = guard.call(lambda features: 0.9, {}, caller="a"), bench.report.fallback_ok
    failing = False
    bench.clock.advance(1.1)
    guard.flush()

    assert (first, while_bad) == (0.9, (0.9, False))
    assert (guard.call(lambda features: 0.9, {}, caller="a"), bench.report.fallback_ok) == (0.5, True)


def test_a_route_to_a_fallback_that_does_not_exist_keeps_the_primary(bench: Bench) -> None:
    guard = bench.guard().start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback"))

    assert guard.call(lambda features: 0.9, {}, caller="a") == 0.9


def test_a_limited_caller_is_refused_with_retry_after(bench: Bench) -> None:
    guard = bench.guard().start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, limits={"mallory": 2.0}))
    guard.call(lambda features: 0.9, {}, caller="mallory")
    with pytest.raises(CallerLimited) as raised:
        guard.call(lambda features: 0.9, {}, caller="mallory")

    assert raised.value.retry_after == pytest.approx(0.5)
    assert raised.value.action_id == "limit-mallory"
    assert guard.call(lambda features: 0.9, {}, caller="alice") == 0.9


def test_a_limited_caller_is_admitted_at_its_rate(bench: Bench) -> None:
    guard = bench.guard().start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, limits={"mallory": 2.0}))
    answered = 0
    for _ in range(1000):  # ten seconds of 100 calls a second
        bench.clock.advance(0.01)
        try:
            guard.call(lambda features: 0.9, {}, caller="mallory")
        except CallerLimited:
            continue
        answered += 1
    guard.flush()

    assert answered == pytest.approx(20, abs=1)
    assert (bench.report.asked, bench.report.refused) == (1000, 1000 - answered)
    assert bench.report.callers[0].refused == 1000 - answered


def test_an_impostor_cannot_use_up_the_share_of_the_caller_it_names(bench: Bench) -> None:
    guard = bench.guard().start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, limits={"carol": 1.0}))
    guard.call(lambda features: 0.9, {}, caller="carol", caller_auth="claimed")
    with pytest.raises(CallerLimited):
        guard.call(lambda features: 0.9, {}, caller="carol", caller_auth="claimed")

    assert guard.call(lambda features: 0.9, {}, caller="carol", caller_auth="verified") == 0.9


def test_refused_calls_are_emitted_once_a_second(bench: Bench) -> None:
    guard = bench.guard().start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, limits={"mallory": 0.0}))
    for _ in range(300):
        bench.clock.advance(0.01)
        with pytest.raises(CallerLimited):
            guard.call(lambda features: 0.9, {"x": 1.0}, caller="mallory")
    guard.flush()

    assert [p.served_by for p in bench.predictions] == ["refused"] * 3
    assert bench.report.callers[0].refused == 300


def test_the_decorator_passes_on_the_caller_only_to_a_function_that_names_it(bench: Bench) -> None:
    guard = bench.guard()

    @guard
    def named(features: dict[str, float], scale: float, *, caller: str) -> tuple[float, str]:
        return scale, caller

    @guard
    def unnamed(features: dict[str, float]) -> float:
        return 1.0

    assert named({}, 2.0, caller="a") == (2.0, "a")
    assert unnamed({}, caller="a") == 1.0  # type: ignore[call-arg]
    assert guard.call(named.__wrapped__, {}, caller="b", scale=3.0) == (3.0, "b")  # type: ignore[attr-defined]


def test_a_caller_named_by_the_service_is_claimed_unless_it_is_the_authenticated_one(bench: Bench) -> None:
    guard = bench.guard()
    token = caller_var.set(Caller("dora", "verified"))
    guard.call(lambda features: 1, {}, caller="dora")
    guard.call(lambda features: 1, {}, caller="eve")
    caller_var.reset(token)
    guard.call(lambda features: 1, {})
    guard.flush()

    assert {c.caller: c.caller_auth for c in bench.report.callers} == {
        "dora": "verified",
        "eve": "claimed",
        "anonymous": "claimed",
    }


def test_a_model_that_changes_its_features_is_emitted_with_those_it_got(bench: Bench) -> None:
    guard = bench.guard()
    guard.call(lambda features: features.pop("x"), {"x": 1.0}, caller="a")
    guard.flush()

    assert bench.predictions[0].features == {"x": 1.0}


def test_a_hung_model_holds_no_more_than_four_probes(bench: Bench) -> None:
    release, entered = threading.Event(), threading.Semaphore(0)

    def hang(features: Any) -> float:
        entered.release()
        release.wait(30)
        return 0.9

    guard = bench.guard(fallback=0.5).start()
    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback", probe_share=1))
    callers = [threading.Thread(target=guard.call, args=(hang, {}), kwargs={"caller": "a"}) for _ in range(4)]
    for thread in callers:
        thread.start()
        entered.acquire(timeout=10)
    held = [guard.call(hang, {}, caller="b") for _ in range(10)]
    release.set()
    for thread in callers:
        thread.join(10)

    assert held == [0.5] * 10
    assert guard.call(hang, {}, caller="b") == 0.9


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, features: Any, caller: str) -> str:
        return caller


def test_any_callable_can_be_guarded(bench: Bench) -> None:
    guard = bench.guard()

    assert guard.call(Unhashable(), {}, caller="a") == "a"
    assert guard.call(len, {"x": 1}, caller="a") == 1
    assert guard.call(Model().predict, {"x": 1.0}, caller="a") == 0.5
    assert guard.call(guard(Unhashable()), {}, caller="b") == "b"


@pytest.mark.anyio
async def test_call_of_an_async_model_is_awaitable(bench: Bench) -> None:
    guard = bench.guard()

    async def predict(features: Any, *, caller: str) -> str:
        return caller

    class Served:
        async def __call__(self, features: Any) -> float:
            return 0.9

    assert await guard.call(predict, {}, caller="a") == "a"
    assert await guard.acall(Served(), {}, caller="a") == 0.9
    assert inspect.iscoroutinefunction(guard(predict))


@pytest.mark.anyio
async def test_an_async_model_is_guarded_alike(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5, timeout_s=0.02)

    @guard
    async def predict(features: dict[str, float], *, caller: str) -> float:
        if features["x"] < 0:
            raise ZeroDivisionError
        await asyncio.sleep(features["x"])
        return 0.9

    answers = [await predict({"x": x}, caller="a") for x in (0.0, -1.0, 30.0)]
    guard.flush()

    assert answers == [0.9, 0.5, 0.5]
    assert routes(bench) == {"primary": (1, 1, 1), "fallback": (2, 0, 0)}


@pytest.mark.anyio
async def test_a_plain_model_does_not_block_the_event_loop(bench: Bench) -> None:
    release = threading.Event()
    guard = bench.guard(fallback=0.5)
    call = asyncio.ensure_future(guard.acall(lambda features: release.wait(30), {}, caller="a"))
    await asyncio.sleep(0)
    release.set()  # only reached if the loop is free

    assert await call is True


@pytest.mark.anyio
async def test_a_call_given_up_by_its_client_is_no_failure(bench: Bench) -> None:
    started = asyncio.Event()
    guard = bench.guard(fallback=0.5, timeout_s=30.0)

    async def hang(features: Any) -> None:
        started.set()
        await asyncio.Event().wait()

    call = asyncio.ensure_future(guard.acall(hang, {}, caller="a"))
    await started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    guard.flush()

    assert (bench.report.in_flight, bench.report.asked, routes(bench)) == (0, 1, {})


@pytest.mark.anyio
async def test_async_calls_beyond_max_inflight_are_answered_with_the_fallback(bench: Bench) -> None:
    release = asyncio.Event()
    guard = bench.guard(fallback=0.5, timeout_s=30.0, max_inflight=1)

    async def hang(features: Any) -> float:
        await release.wait()
        return 0.9

    first = asyncio.ensure_future(guard.acall(hang, {}, caller="a"))
    await asyncio.sleep(0)
    second = await guard.acall(hang, {}, caller="a")
    release.set()

    assert (await first, second) == (0.9, 0.5)


def test_an_async_fallback_is_an_error_at_construction() -> None:
    async def fallback(features: Any) -> float:
        return 0.5

    with pytest.raises(TypeError, match="must not be async"):
        Guard("credit", fallback=fallback, transport=FakeTransport())


@pytest.mark.parametrize("options", [{"sample": 0.0}, {"sample": 1.5}, {"timeout_s": 0.0}, {"max_inflight": 0}])
def test_wrong_options_are_errors_at_construction(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be in"):
        Guard("credit", transport=FakeTransport(), **options)


def test_an_unknown_option_is_an_error_at_construction() -> None:
    with pytest.raises(TypeError, match="fall_back"):
        Guard("credit", fall_back=0.5)  # type: ignore[call-arg]


def test_settings_that_kafka_refuses_are_logged_and_cost_no_call(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard("credit", bootstrap="127.0.0.1:1", kafka_settings={"no.such.setting": 1})

    assert guard.call(lambda features: 0.9, {}, caller="a") == 0.9
    assert [r for r in caplog.records if "KAFKA SETTINGS ARE REFUSED" in r.getMessage()]
    guard.close()


def test_a_service_can_tell_who_answered_and_why(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5)
    guard.call(lambda features: 1.0, {"x": 1.0}, caller="a")
    assert last_answer() == Answered("primary")

    guard.call(broken, {"x": 1.0}, caller="a")
    assert last_answer() == Answered("fallback", "error")

    bench.transport.deliver(directive(ENDPOINT, bench.key, route="fallback", probe_share=0.0))
    guard.call(lambda features: 1.0, {"x": 1.0}, caller="a")

    assert last_answer() == Answered("fallback", "directive")


def test_who_answered_is_known_after_an_awaited_call(bench: Bench) -> None:
    guard = bench.guard(fallback=0.5)

    async def late(features: Any) -> float:
        raise ZeroDivisionError

    async def request() -> Answered | None:
        await guard.acall(late, {"x": 1.0}, caller="a")
        return last_answer()

    assert asyncio.run(request()) == Answered("fallback", "error")
