"""Which endpoints send without being in the configuration, and which versions are one too many?

Each is said once, and nothing of it is judged: names that a stranger makes up must not become state.
"""

from __future__ import annotations

from detectors.base import LogPoint, Reading
from detectors.signal_book import SignalBook
from schemas.signals import Signal, SignalKind

MAX_NAMES = 100
"""Names that are said; more would be noise, or an attack on whoever reads them."""
_ADVICE = {
    "unknown_endpoint": "add the endpoint to the configuration, or correct its name where it is served",
    "unknown_version": "this endpoint names too many versions without a profile; activate profiles, or correct model_version",
}


class UnknownNames:
    """Of one partition of one log. Not saved: a restart says a name again, with the id of where it then stood."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def endpoint(self, endpoint: str, at: LogPoint) -> list[Signal]:
        """The signal that this endpoint is unknown, at its first row."""
        return self._say("unknown_endpoint", endpoint, at)

    def version(self, endpoint: str, at: LogPoint) -> list[Signal]:
        """The signal that this endpoint has more versions without a profile than are kept."""
        return self._say("unknown_version", endpoint, at)

    def _say(self, kind: SignalKind, endpoint: str, at: LogPoint) -> list[Signal]:
        if (kind, endpoint) in self._said or len(self._said) >= MAX_NAMES:
            return []
        self._said.add((kind, endpoint))
        reading = Reading(
            detector="registry",
            detector_hash="registry-1",
            kind=kind,
            endpoint=endpoint,
            subject_kind="endpoint",
            subject=endpoint,
            score=1.0,
            threshold=0.5,
            firing=True,
            calm=False,
            severity="warning",
            at=at,
            first_ms=at.ms,
            evidence={"advice": _ADVICE[kind]},
        )
        return SignalBook(recover_for_ms=0).fold([reading])
