"""The topics: names, partitions, retention, compaction, whose clock. One admin command makes them from this list."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.roles import Role

REQUESTS = "palisade.requests"
RESPONSES = "palisade.responses"
PREDICTIONS = "palisade.predictions"
REPORTS = "palisade.reports"
FEEDBACK = "palisade.feedback"
LABELLED = "palisade.labelled"
VERDICTS = "palisade.verdicts"
SIGNALS = "palisade.signals"
ACTIONS = "palisade.actions"
DIRECTIVES = "palisade.directives"
COMMANDS = "palisade.commands"
DEAD_LETTERS = "palisade.deadletters"
PROFILES = "palisade.profiles"
SNAPSHOTS = "palisade.snapshots"
RESPOND_STATE = "palisade.respond_state"

DAY_MS = 86_400_000
WHO_LOOK: tuple[Role, ...] = ("operators", "viewers")


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """How one topic is made. `follows_input`: as many partitions as predictions have.

    `writers`, `readers`: who may, for the broker's ACLs. Records of people and directives carry signatures; what the
    roles say to each other (signals, verdicts, journal, state) is believed because nobody else may write there.
    """

    name: str
    key: str
    purpose: str
    writers: tuple[Role, ...]
    readers: tuple[Role, ...]
    follows_input: bool
    compacted: bool = False
    retention_ms: int = 7 * DAY_MS
    max_message_bytes: int = 1_100_000

    def partitions(self, input_partitions: int) -> int:
        return input_partitions if self.follows_input else 1

    def config(self) -> dict[str, str]:
        """The broker's settings; LogAppendTime, because time in the log must not be a producer's to choose."""
        settings = {
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(self.max_message_bytes),
        }
        if self.compacted:
            return settings | {"cleanup.policy": "compact", "max.compaction.lag.ms": "3600000"}
        return settings | {"cleanup.policy": "delete", "retention.ms": str(self.retention_ms)}


TOPICS: tuple[TopicSpec, ...] = (
    TopicSpec(
        REQUESTS,
        "request id",
        "what services were asked, in any language; ingest pairs it with the answer",
        ("services", "redrivers"),
        ("ingest", "verifiers"),
        True,
        retention_ms=DAY_MS,
    ),
    TopicSpec(
        RESPONSES,
        "request id",
        "what services answered; keyed as the request",
        ("services", "redrivers"),
        ("ingest", "verifiers"),
        True,
        retention_ms=DAY_MS,
    ),
    TopicSpec(
        PREDICTIONS,
        "endpoint",
        "one event a prediction; ticks and profile activations between them",
        ("serving", "ingest", "detect", "operators", "redrivers"),
        ("ingest", "detect", "audit", "verifiers"),
        True,
    ),
    TopicSpec(
        REPORTS,
        "endpoint",
        "what each serving process did in the last interval; ticks between them",
        ("serving", "ingest", "detect", "redrivers"),
        ("detect", "audit", "verifiers"),
        True,
    ),
    TopicSpec(
        FEEDBACK,
        "endpoint",
        "what came of predictions, often weeks later",
        ("services", "redrivers"),
        ("audit",),
        True,
        retention_ms=30 * DAY_MS,
    ),
    TopicSpec(
        LABELLED,
        "endpoint",
        "feedback joined with its prediction",
        ("audit",),
        ("detect", "audit", "verifiers"),
        True,
        retention_ms=30 * DAY_MS,
    ),
    TopicSpec(
        VERDICTS,
        "endpoint",
        "the outcome of each row, the readings of each block",
        ("detect",),
        ("audit", "verifiers"),
        True,
    ),
    TopicSpec(
        SIGNALS,
        "endpoint",
        "what detectors concluded; endpoint states",
        ("detect",),
        ("respond", "audit", *WHO_LOOK, "verifiers"),
        False,
        retention_ms=30 * DAY_MS,
    ),
    TopicSpec(
        ACTIONS,
        "endpoint",
        "the journal of the responder",
        ("respond",),
        ("respond", "audit", *WHO_LOOK, "verifiers"),
        False,
        retention_ms=365 * DAY_MS,
    ),
    TopicSpec(
        DIRECTIVES,
        "endpoint",
        "each endpoint's wanted state, signed; the kill switch",
        ("respond", "operators"),
        ("serving", "respond", "audit", *WHO_LOOK, "verifiers"),
        True,
        compacted=True,
    ),
    TopicSpec(
        COMMANDS,
        "endpoint",
        "what people ordered, signed",
        ("operators",),
        ("respond", "audit", "verifiers"),
        False,
        retention_ms=365 * DAY_MS,
    ),
    TopicSpec(
        DEAD_LETTERS,
        "log topic",
        "what could not be decoded, and why; what of it was sent again",
        ("ingest", "detect", "respond", "audit", "redrivers"),
        ("audit", *WHO_LOOK, "verifiers", "redrivers"),
        True,
        retention_ms=30 * DAY_MS,
    ),
    TopicSpec(
        PROFILES,
        "profile hash",
        "profiles of training data",
        ("detect", "operators"),
        ("detect", "audit", "verifiers"),
        False,
        compacted=True,
        max_message_bytes=8_500_000,
    ),
    TopicSpec(
        SNAPSHOTS,
        "log, endpoint, version",
        "detector state with its offsets",
        ("detect",),
        ("detect", "verifiers"),
        True,
        compacted=True,
    ),
    TopicSpec(
        RESPOND_STATE,
        "state",
        "the responder's state with its journal offset",
        ("respond",),
        ("respond",),
        False,
        compacted=True,
        max_message_bytes=5_000_000,
    ),
)
BY_NAME: dict[str, TopicSpec] = {spec.name: spec for spec in TOPICS}
