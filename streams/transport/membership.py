"""When a consumer that its group gives nothing is made anew.

A broker that shuts down can say that the cluster has no broker; librdkafka 2.12 to 2.16 then forgets all that it knows and
asks nobody ever again (its issue 5301). Nothing is assigned to who is no member, so nothing is lost by a new one; and a broker
that is merely away is asked by a client that looks its name up again.
"""

from __future__ import annotations


class Membership:
    """Watches one consumer after the other. `renew_s`: for so long no group knows it; `rejoin_s`: one knows it, and has not
    said for so long which partitions are its own, maybe none."""

    def __init__(self, renew_s: float, rejoin_s: float) -> None:
        self._renew_s, self._rejoin_s = renew_s, rejoin_s
        self._outside_since: float | None = None

    def given_up(self, now: float, *, known: bool, joined: bool) -> float | None:
        """Seconds for which it has been left out, once that is too long: the count begins anew then."""
        if known and joined:
            self._outside_since = None
        elif self._outside_since is None:
            self._outside_since = now
        elif (outside_s := now - self._outside_since) > (self._rejoin_s if known else self._renew_s):
            self._outside_since = None
            return outside_s
        return None
