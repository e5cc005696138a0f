"""When a webhook message is sent: pure, each moment and draw handed in."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from responders.delivery import (
    DEADLINE_S,
    FIRST_DEADLINE_S,
    JITTER,
    MAX_RETRY_AFTER_S,
    MAX_SLOW_S,
    REFRESH_S,
    RELEASE_TRIES,
    RETRY_S,
    URGENT_S,
    Answer,
    Delivery,
    News,
    alarm_s,
    answered,
    overdue,
    want,
)
from responders.webhooks import Message

OK, DOWN, BUSY = Answer(status=204), Answer(fault="unreachable"), Answer(status=503)


def flip(epoch: int = 1, *actions: str) -> Message:
    return Message(f"id-{epoch}", "credit", epoch, b"{}", actions or ("action",))


def release(epoch: int) -> Message:
    return Message(f"id-{epoch}", "credit", epoch, b"{}", ())


def failed(message: Message, times: int, answer: Answer = DOWN, delivery: Delivery | None = None) -> list[float]:
    """The waits after each of so many failures, without jitter."""
    delivery, now, waits = want(delivery or Delivery(), message, 0.0), 0.0, []
    for _ in range(times):
        delivery, _ = answered(delivery, message, answer, now, 0.0)
        waits.append(delivery.next_s - now)
        now = delivery.next_s if math.isfinite(delivery.next_s) else now
    return waits


def test_a_new_state_is_due_at_once_and_has_two_seconds() -> None:
    delivery = want(Delivery(), flip(), 7.0)

    assert (delivery.next_s, delivery.deadline_s) == (7.0, FIRST_DEADLINE_S)
    delivery, _ = answered(delivery, flip(), DOWN, 7.0, 0.0)
    assert delivery.deadline_s == DEADLINE_S


def test_while_something_holds_it_is_tried_again_after_5_s_and_then_each_10_s_without_end() -> None:
    waits = failed(flip(), 500)

    assert waits[:3] == [5.0, URGENT_S, URGENT_S]
    assert set(waits[1:]) == {URGENT_S}


def test_that_nothing_holds_is_tried_urgently_for_an_hour_and_given_up_by_then() -> None:
    """A receiver holds nothing longer than an hour by itself."""
    waits = failed(release(1), RELEASE_TRIES + 2)

    assert sum(waits[:RELEASE_TRIES]) == pytest.approx(3_600, rel=0.01)
    assert waits[RELEASE_TRIES] == math.inf


def test_where_nothing_can_hold_the_schedule_is_that_of_the_convention() -> None:
    waits = failed(release(1), len(RETRY_S) + 1, delivery=Delivery(told=()))

    assert waits == [*RETRY_S, math.inf]


def test_that_it_is_given_up_is_told_with_the_number_of_attempts_and_the_last_answer() -> None:
    delivery, told = want(Delivery(told=()), release(1), 0.0), []
    for _ in range(len(RETRY_S) + 1):
        delivery, news = answered(delivery, release(1), DOWN, delivery.next_s, 0.0)
        told.append(news)

    assert told[:-1] == [None] * len(RETRY_S)
    assert told[-1] == News("webhook_given_up", release(1), len(RETRY_S) + 1, 0.0, DOWN)


@given(st.floats(0, 1, exclude_max=True))
def test_jitter_only_lengthens_a_wait_and_by_a_fifth_at_most(draw: float) -> None:
    delivery, _ = answered(want(Delivery(), flip(), 0.0), flip(), DOWN, 0.0, draw)

    assert RETRY_S[0] <= delivery.next_s <= RETRY_S[0] * (1 + JITTER)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_only_2xx_is_success(status: int) -> None:
    delivery, news = answered(want(Delivery(), release(1), 0.0), release(1), Answer(status=status), 1.0, 0.0)

    assert delivery.next_s == math.inf
    assert news is not None
    assert news.kind == "webhook_delivered"


def test_what_holds_is_told_again_each_minute_and_a_receiver_that_is_gone_by_then_is_found_out() -> None:
    delivery, _ = answered(want(Delivery(), flip(), 0.0), flip(), OK, 1.0, 0.0)
    assert (delivery.message, delivery.next_s, delivery.deadline_s) == (flip(), 1.0 + REFRESH_S, FIRST_DEADLINE_S)
    again, news = answered(delivery, flip(), OK, 61.0, 0.0)
    assert (again.next_s, news) == (61.0 + REFRESH_S, None)
    gone, _ = answered(again, flip(), DOWN, 121.0, 0.0)
    assert (gone.next_s, alarm_s(gone, 10.0)) == (126.0, 131.0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304, 400, 401, 404, 409, 418, 500, 503])
def test_anything_else_is_tried_again_redirects_included(status: int) -> None:
    delivery, news = answered(want(Delivery(), flip(), 0.0), flip(), Answer(status=status), 1.0, 0.0)

    assert delivery.next_s == 1.0 + RETRY_S[0]
    assert news is None


def test_410_disables_until_a_responder_takes_over_and_people_are_told() -> None:
    delivery, news = answered(want(Delivery(), flip(), 0.0), flip(), Answer(status=410), 1.0, 0.0)

    assert news is not None
    assert news.kind == "webhook_disabled"
    assert delivery.next_s == math.inf
    assert want(delivery, flip(2), 2.0) == delivery
    assert overdue(delivery, 1e9, 10.0) == (delivery, None)


@pytest.mark.parametrize("status", [429, 502, 504])
def test_a_receiver_that_is_overloaded_is_asked_less_often(status: int) -> None:
    assert failed(flip(), 3, Answer(status=status)) == [30.0, MAX_SLOW_S, MAX_SLOW_S]


@pytest.mark.parametrize(("asked", "waits"), [(60.0, 60.0), (1.0, 5.0), (1e9, MAX_RETRY_AFTER_S), (0.0, 5.0)])
def test_retry_after_is_honoured_within_a_bound(asked: float, waits: float) -> None:
    delivery, _ = answered(want(Delivery(), flip(), 0.0), flip(), replace(BUSY, retry_after_s=asked), 0.0, 0.0)

    assert delivery.next_s == waits
    assert want(delivery, flip(2), 0.5).next_s == max(0.5, min(asked, MAX_RETRY_AFTER_S)), (
        "it holds for newer states too"
    )


def test_a_newer_state_takes_the_place_of_an_older_one_that_waits() -> None:
    delivery, _ = answered(want(Delivery(), flip(1), 0.0), flip(1), DOWN, 0.0, 0.0)
    delivery = want(delivery, release(2), 1.0)

    assert (delivery.message, delivery.next_s, delivery.attempts) == (release(2), 1.0, 0)
    assert want(delivery, flip(1), 1.5) == delivery, "an older one never comes back"
    assert want(delivery, release(2), 1.5) == delivery, "the same one is not sent twice"


def test_an_answer_to_a_superseded_attempt_changes_nothing_of_the_newer_one() -> None:
    delivery = want(want(Delivery(), flip(1), 0.0), release(2), 1.0)

    for late in (OK, DOWN, BUSY):
        after, news = answered(delivery, flip(1), late, 1.5, 0.0)
        assert (after.message, after.next_s, after.attempts, news) == (release(2), 1.0, 0, None)
        assert after.undelivered_since_s == 0.0


def test_people_are_told_once_that_a_receiver_takes_nothing_and_once_that_it_does_again() -> None:
    delivery = want(Delivery(), flip(1), 0.0)
    delivery, _ = answered(delivery, flip(1), DOWN, 0.1, 0.0)
    assert overdue(delivery, 9.9, 10.0)[1] is None
    assert alarm_s(delivery, 10.0) == 10.0

    delivery, news = overdue(delivery, 10.0, 10.0)
    assert news == News("webhook_failing", flip(1), 1, 0.0, DOWN)
    assert overdue(delivery, 99.0, 10.0)[1] is None
    delivery = want(delivery, flip(2), 11.0)
    assert overdue(delivery, 99.0, 10.0)[1] is None, "a renewal does not begin the alarm anew"
    delivery, news = answered(delivery, flip(2), OK, 12.0, 0.0)
    assert news == News("webhook_delivered", flip(2), 1, 0.0, OK)
    assert alarm_s(delivery, 10.0) == math.inf


def test_people_are_told_again_where_an_undelivered_release_is_followed_by_an_action() -> None:
    delivery, news = overdue(want(Delivery(), release(1), 0.0), 10.0, 10.0)
    assert news is not None
    delivery = want(delivery, flip(2), 60.0)
    assert alarm_s(delivery, 10.0) == 70.0
    delivery, news = overdue(delivery, 70.0, 10.0)

    assert news is not None
    assert (news.message, news.since_s) == (flip(2), 60.0)


def test_renewals_do_not_put_the_alarm_off() -> None:
    delivery = want(want(Delivery(), flip(1), 0.0), flip(2), 9.0)

    assert alarm_s(delivery, 10.0) == 10.0


def test_a_renewal_that_is_taken_is_no_news_and_a_change_is() -> None:
    delivery, _ = answered(want(Delivery(), flip(1, "a"), 0.0), flip(1, "a"), OK, 0.0, 0.0)
    delivery, renewed = answered(want(delivery, flip(2, "a"), 1.0), flip(2, "a"), OK, 1.0, 0.0)
    delivery, limited = answered(want(delivery, flip(3, "a", "b"), 2.0), flip(3, "a", "b"), OK, 2.0, 0.0)
    delivery, back = answered(want(delivery, release(4), 3.0), release(4), OK, 3.0, 0.0)

    assert renewed is None
    assert limited is not None
    assert back is not None


answers = st.one_of(
    st.sampled_from([Answer(fault="timeout"), DOWN, Answer(fault="tls")]),
    st.builds(
        Answer,
        status=st.sampled_from([200, 204, 301, 400, 429, 500, 502, 503, 504]),
        retry_after_s=st.one_of(st.none(), st.floats(0, 1e12)),
    ),
)
steps = st.lists(st.tuples(st.booleans(), st.booleans(), answers, st.floats(0, 400), st.floats(0, 1, exclude_max=True)))


@given(steps)
def test_whatever_happens_the_newest_state_is_tried_again_within_bounds_until_it_is_taken(
    story: list[tuple[bool, bool, Answer, float, float]],
) -> None:
    delivery, now, epoch = want(Delivery(), flip(1), 0.0), 0.0, 1
    for newer, holds, answer, passes, draw in story:
        now += passes
        sent = delivery.message
        assert sent is not None
        if newer:
            epoch += 1
            delivery = want(delivery, flip(epoch) if holds else release(epoch), now)
        delivery, _ = answered(delivery, sent, answer, now, draw)
        delivery, _ = overdue(delivery, now, 10.0)

        assert delivery.message is not None
        assert delivery.message.epoch == epoch, "an older state never comes back"
        if delivery.undelivered_since_s is None:
            assert delivery.next_s == (now + REFRESH_S * (1 + JITTER * draw) if sent.holds else math.inf)
            assert answer.taken
            assert sent.epoch == epoch
        elif delivery.message.holds:
            assert delivery.next_s - now <= max(MAX_SLOW_S * (1 + JITTER), MAX_RETRY_AFTER_S) + 1e-6
