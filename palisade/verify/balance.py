"""I1 and I2: every event ends once, and nothing is committed before it has ended."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from palisade.verify.columns import ROW_BITS, Columns, Longs, Place, absent, by_place, only
from palisade.verify.finding import Break, Finding, earliest, listed, moment
from palisade.verify.history import History
from palisade.verify.ingested import asked_ends
from palisade.verify.logs import DEAD, DETECT, JUDGED, NEVER, SCORED, Log, logs_of


def every_event_ends_once(history: History) -> Finding:
    """I1. Per partition of a log with outcomes: `in = scored + dead-lettered + lost + in flight`.

    - Each event of each record has exactly one outcome; told twice it is the same. A record may be refused as a whole:
      then its one outcome is a dead row 0, and its dead letter is of all its bytes.
    - In flight is what lies at or above the committed offset of detect, unless the run is finished.
    - There is no outcome of what is not there; a record with dead events has a dead letter, and the reverse.
    - Each record that a producer was told is stored (`sent`) is there or lost; what is lost was told to people, and gets no
      outcome after that (a loss is told from the committed offset on: what was told before it stands). Of each producer: attempted = acked + rejected (`producers`).

    - What ingest has read of requests and responses became predictions or dead letters; see `ingested.py`.

    The first counter-example is that of the oldest record.
    """
    logs = logs_of(history)
    lost = by_place(history["lost"], ("first", "last", "at_ms", "told"), ("first",))
    sent = by_place(history["sent"], ("rows",))
    broken = [*_producers(history)]
    for log in logs:
        broken += _misplaced(log)
        broken += _letters(log)
        broken += _missing(log)
        broken += _lost(log, lost.get(log.place))
        broken += _sent(log, sent.get(log.place), lost.get(log.place))
    ends = asked_ends(history)
    broken += ends.broken
    events = sum(int(log.expected.sum()) for log in logs)
    ended = sum(len(log.keys) for log in logs)
    scored = sum(int((log.outcomes["outcome"] == SCORED).sum()) for log in logs)
    unseen = [] if "sent" in history else ["what producers were told is stored (judged on what lies on the log)"]
    if "producers" not in history:
        unseen.append("what producers refused themselves")
    if "dead_letters" not in history:
        unseen.append("whether dead-lettered events have dead letters")
    if "lost" not in history:
        unseen.append("what could not be read")
    unseen += [ends.unjudged] if ends.unjudged else []
    gone = sum(int((of["last"] - of["first"] + 1).sum()) for place, of in lost.items() if place[0] in JUDGED)
    idle = f"none of the {events:,} events is below the committed offset of {DETECT}" if events else "no event is there"
    settled = any(log.settled > log.first for log in logs)
    return Finding(
        f"{events:,} events: {scored:,} scored, {ended - scored:,} dead-lettered, {max(0, events - ended):,} in flight"
        + (f"; {gone:,} offsets lost" if gone else "")
        + (f"; {ends.asked:,} requests and responses" if ends.asked else "")
        + (f", {ends.twice:,} with more than one prediction" if ends.twice else ""),
        earliest(broken),
        tuple(unseen),
        "" if settled and events else idle,
    )


def _missing(log: Log) -> Iterator[Break]:
    lacking = absent(log.expected_keys(), log.keys)
    lacking = lacking[(lacking >> ROW_BITS) + log.first < log.settled]
    if len(lacking):
        offset, row = log.at(lacking[0])
        at_ms = log.time_of(offset)
        yield Break(
            at_ms,
            f"{log.name} offset {offset} row {row} of {moment(at_ms)} lies below {log.settled}, up to which everything has "
            f"ended, and has no outcome: neither scored, dead-lettered nor lost ({len(lacking):,} such events there)",
        )


def _misplaced(log: Log) -> Iterator[Break]:
    """Outcomes that differ, and outcomes of nothing."""
    if len(log.torn):
        offset, row = log.at(log.torn[0])
        yield Break(log.time_of(offset), f"{log.name} offset {offset} row {row} is both scored and dead-lettered")
    extra = absent(log.keys, log.expected_keys())
    dead = log.keys[log.outcomes["outcome"] == DEAD]
    refused_controls = np.isin(extra, dead) & np.isin(extra, (log.controls - log.first) << ROW_BITS)  # as row 0
    extra = extra[~refused_controls]
    if len(extra):
        offset, row = log.at(extra[0])
        there = offset in log.records["offset"] or offset in log.controls
        what = "the record there has no such event" if there else "no record lies there"
        yield Break(log.time_of(offset), f"{log.name} offset {offset} row {row} has an outcome, but {what}")


def _letters(log: Log) -> Iterator[Break]:
    """Dead events without a letter, letters without a dead event."""
    if log.letters is None:
        return
    dead_at = log.outcomes["offset"][log.outcomes["outcome"] == DEAD]
    settled_dead = dead_at[dead_at < log.settled]
    mute = absent(settled_dead, log.letters["offset"])
    if len(mute) and not (log.letters["for_run"] == 1).any():
        offset = int(mute[0])
        yield Break(log.time_of(offset), f"{log.name} offset {offset} has dead-lettered events, but no dead letter")
    settled_letters = log.letters["offset"][log.letters["offset"] < log.settled]
    idle = absent(settled_letters, dead_at)
    if len(idle):
        offset = int(idle[0])
        yield Break(log.time_of(offset), f"{log.name} offset {offset} has a dead letter, but no dead-lettered event")


def _lost(log: Log, lost: Columns | None) -> Iterator[Break]:
    if lost is None:
        return
    for first, last, at_ms, told in zip(lost["first"], lost["last"], lost["at_ms"], lost["told"], strict=True):
        if told != 1:
            if first < log.settled:  # what lies at the end is told with the first record behind it
                at = log.time_of(int(first))
                yield Break(at, f"{log.name} lost offsets {first} to {last}, and nobody was told")
            continue
        inside = (log.outcomes["offset"] >= first) & (log.outcomes["offset"] <= last)
        both = log.outcomes["offset"][inside & (log.outcomes["at_ms"] > at_ms)]
        if len(both):
            yield Break(int(at_ms), f"{log.name} offset {both[0]} counts as lost, and has an outcome")


def _sent(log: Log, sent: Columns | None, lost: Columns | None) -> Iterator[Break]:
    if sent is None:
        return
    offsets = sent["offset"][sent["offset"] >= log.first]
    there = np.isin(offsets, log.records["offset"]) | np.isin(offsets, log.controls) | _covered(offsets, lost)
    gone = offsets[~there]
    if len(gone):
        yield Break(
            log.time_of(int(gone[0])),
            f"{log.name} offset {gone[0]}: its producer was told that it is stored, but no record lies there, and it does "
            f"not count as lost ({len(gone):,} such records)",
        )


def _covered(offsets: Longs, ranges: Columns | None) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    covered = np.zeros(len(offsets), dtype=np.bool_)
    if ranges is not None:
        for first, last in zip(ranges["first"], ranges["last"], strict=True):
            covered |= (offsets >= first) & (offsets <= last)
    return covered


def _producers(history: History) -> Iterator[Break]:
    for each in history["producers"].to_pylist():
        if each["attempted"] != each["acked"] + each["rejected"]:
            yield Break(
                0,
                f"producer {each['producer']} tried to send {each['attempted']:,} events, but {each['acked']:,} were stored "
                f"and {each['rejected']:,} are counted as refused",
            )


def nothing_is_committed_unfinished(history: History) -> Finding:
    """I2. In each sample: committed offset <= smallest unfinished offset.

    Where the sampler knew the smallest unfinished offset it is taken. Of detect it is else the first record of which some
    event was told its outcome only after the sample (by the broker's time, give or take `clock_ms`), or never.
    """
    samples = history["commits"]
    known = samples.filter(samples["unfinished"].is_valid())
    unknown = samples.filter(samples["unfinished"].is_null())
    broken: list[Break] = []
    judged = known.num_rows
    names = listed({f"{group}" for group in known["group"].to_pylist()})
    for group in set(known["group"].to_pylist()):
        for place, columns in by_place(only(known, group=group), ("committed", "unfinished"), ("at_ms",)).items():
            broken += _overtaken(str(group), place, columns)
    of_detect = by_place(only(unknown, group=DETECT), ("committed",), ("at_ms",))
    for log in logs_of(history) if {"records", "outcomes"} <= history.names else ():
        if log.place in of_detect:
            judged += len(of_detect[log.place]["committed"])
            names = names or DETECT
            broken += _told_too_late(log, of_detect[log.place], history.run.clock_ms)
    others = {
        str(group)
        for group, topic in zip(unknown["group"].to_pylist(), unknown["topic"].to_pylist(), strict=True)
        if group != DETECT or topic not in JUDGED
    }
    return Finding(
        f"{judged:,} samples of {names}",
        earliest(broken),
        (f"what {listed(others)} had finished of other topics",) if others else (),
        "" if judged else "no sample says, and no outcome shows, what was unfinished",
    )


def _overtaken(group: str, place: Place, samples: Columns) -> Iterator[Break]:
    over = np.flatnonzero(samples["committed"] > samples["unfinished"])
    if len(over):
        at = over[0]
        at_ms, committed, unfinished = (int(samples[name][at]) for name in ("at_ms", "committed", "unfinished"))
        yield Break(
            at_ms,
            f"at {moment(at_ms)} {group} had committed {committed} of {place[0]}[{place[1]}], while offset {unfinished} "
            "was unfinished",
        )


def _told_too_late(log: Log, samples: Columns, clock_ms: int) -> Iterator[Break]:
    done, offsets = log.done_ms(), log.records["offset"]
    inside = samples["committed"] <= log.end
    committed, at_ms = samples["committed"][inside], samples["at_ms"][inside]
    latest = np.concatenate(([0], np.maximum.accumulate(done)))[np.searchsorted(offsets, committed)]
    over = np.flatnonzero(latest > at_ms + clock_ms)
    if len(over):
        now, bound = int(at_ms[over[0]]), int(committed[over[0]])
        offset = int(offsets[(done > now + clock_ms) & (offsets < bound)][0])
        late = int(done[np.searchsorted(offsets, offset)])
        then = "has no outcome at all" if late == NEVER else f"was told its outcome at {moment(late)}"
        yield Break(
            now,
            f"at {moment(now)} {DETECT} had committed {bound} of {log.name}, but the record at offset {offset} {then}",
        )
