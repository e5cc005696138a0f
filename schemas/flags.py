"""Oddities of a decodable row, as bits. Each is scored as missing or clamped, and counts as evidence against its caller."""

from __future__ import annotations

from enum import IntFlag


class RowFlag(IntFlag):
    """Bits of a row's `flags` in verdicts."""

    ODD_ID = 1
    NOT_FINITE = 2
    MISSING_FEATURE = 4
    UNKNOWN_FEATURE = 8
    UNSEEN_CATEGORY = 16
    WRONG_FEATURE_TYPE = 32
    LATE = 64
    FUTURE = 128
    CONTROL_CHARACTERS = 256
    NO_PROFILE = 512
    UNREGISTERED_ENDPOINT = 1024
    OUT_OF_RANGE = 2048
    REUSED_ID = 4096
    MALFORMED = 8192


MAX_EVENT_AGE_MS = 3_600_000
"""Event time is taken as it is when within an hour before ...."""
MAX_EVENT_LEAD_MS = 300_000
"""... and five minutes after the broker's time; outside it is clamped and flagged LATE or FUTURE."""

EXPLAINED: dict[RowFlag, str] = {
    RowFlag.ODD_ID: "an id was longer than 128 bytes or held characters outside [A-Za-z0-9._:@-]; it was hashed",
    RowFlag.NOT_FINITE: "a number was NaN, infinite or beyond 1e30; it was taken as missing",
    RowFlag.MISSING_FEATURE: "a feature of the profile was absent or null",
    RowFlag.UNKNOWN_FEATURE: "a feature was present that the profile does not know; it was ignored",
    RowFlag.UNSEEN_CATEGORY: "a category was seen that the training data did not hold",
    RowFlag.WRONG_FEATURE_TYPE: "a feature was text where the profile has numbers, or the reverse; taken as missing",
    RowFlag.LATE: "event time was more than an hour before the broker's; it was clamped",
    RowFlag.FUTURE: "event time was more than five minutes after the broker's; it was clamped",
    RowFlag.CONTROL_CHARACTERS: "a category held control characters",
    RowFlag.NO_PROFILE: "no profile is active for this endpoint and version; content detectors say unknown",
    RowFlag.UNREGISTERED_ENDPOINT: "the endpoint is not in the configuration",
    RowFlag.OUT_OF_RANGE: "a latency was negative (taken as unknown) or a weight not within 0 to 1e6 (taken as 1)",
    RowFlag.MALFORMED: "the row could not be decoded and is dead-lettered; it shows its caller, and counts against it alone",
    RowFlag.REUSED_ID: "the request's id was that of another request that still waited for its answer",
}
