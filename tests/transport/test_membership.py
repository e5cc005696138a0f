"""When a consumer is taken to be forgotten: by its own count, on a clock that is handed in."""

from __future__ import annotations

from streams.transport.membership import Membership


def test_one_that_no_group_knows_is_given_up_after_a_while() -> None:
    membership = Membership(renew_s=15.0, rejoin_s=120.0)
    assert [membership.given_up(now, known=False, joined=False) for now in (0.0, 15.0, 15.5)] == [None, None, 15.5]


def test_one_that_is_known_and_told_nothing_has_longer() -> None:
    membership = Membership(renew_s=15.0, rejoin_s=120.0)
    assert [membership.given_up(now, known=True, joined=False) for now in (0.0, 100.0, 121.0)] == [None, None, 121.0]


def test_a_member_that_has_its_partitions_starts_the_count_anew() -> None:
    membership = Membership(renew_s=15.0, rejoin_s=120.0)
    membership.given_up(0.0, known=False, joined=False)
    membership.given_up(14.0, known=True, joined=True)
    assert membership.given_up(16.0, known=False, joined=False) is None
    assert membership.given_up(30.0, known=False, joined=False) is None
    assert membership.given_up(32.0, known=False, joined=False) == 16.0


def test_the_next_consumer_has_as_long_as_the_first() -> None:
    membership = Membership(renew_s=15.0, rejoin_s=120.0)
    told = [membership.given_up(now, known=False, joined=False) for now in (0.0, 16.0, 17.0, 31.0, 33.0)]
    assert told == [None, 16.0, None, None, 16.0]
