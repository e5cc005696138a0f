"""The registry: one line an invariant, in the order of the design."""

from __future__ import annotations

from palisade.verify.acting import caps_hold, epochs_rise_and_orders_end
from palisade.verify.audited import audit_equals_outcomes, every_action_is_on_record
from palisade.verify.balance import every_event_ends_once, nothing_is_committed_unfinished
from palisade.verify.finding import Invariant, Verdict, verdict_on
from palisade.verify.history import History
from palisade.verify.replayed import replay_has_no_new_effect, state_equals_uninterrupted
from palisade.verify.running import chain_verifies, detection_does_not_wait_for_audit, processes_live, webhooks_end

INVARIANTS: tuple[Invariant, ...] = (
    Invariant("I1", "every event ends exactly once", ("records", "outcomes"), every_event_ends_once),
    Invariant("I2", "nothing is committed before it ended", ("commits",), nothing_is_committed_unfinished),
    Invariant("I3", "state equals that of an uninterrupted run", ("states",), state_equals_uninterrupted),
    Invariant("I4", "the audit equals what was scored", ("records", "outcomes", "audit"), audit_equals_outcomes),
    Invariant("I5", "every action is on record with its evidence", ("orders", "decisions"), every_action_is_on_record),
    Invariant("I6", "a replay has no new effect", ("signals", "journal", "decisions"), replay_has_no_new_effect),
    Invariant("I7", "epochs never fall, orders end", ("reports",), epochs_rise_and_orders_end),
    Invariant("I8", "caps hold at every instant", ("decisions",), caps_hold),
    Invariant("I9", "no input ends, hangs or swells a process", ("processes",), processes_live),
    Invariant("I10", "the hash chain verifies", ("ledger",), chain_verifies),
    Invariant("I11", "every webhook is delivered or has an end", ("webhooks",), webhooks_end),
    Invariant("I12", "detection does not wait for the audit", ("outages",), detection_does_not_wait_for_audit),
)


def judge(history: History) -> list[Verdict]:
    """The verdict on each invariant, in order."""
    return [verdict_on(invariant, history) for invariant in INVARIANTS]
