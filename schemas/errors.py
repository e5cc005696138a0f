"""The exception tree. Each message says what was found and what the user can do about it."""

from __future__ import annotations


class PalisadeError(Exception):
    """Base of everything that Palisade raises on purpose."""


MACHINE_ERRORS = (MemoryError, OSError)
"""What an exhausted machine or a lost connection raises, whatever was handled: it may pass, so no record is blamed for it.
The process ends, and what it had not finished is read again."""


class ConfigError(PalisadeError):
    """A configuration, policy or profile file that cannot be used; `where` is `file:line` when it is known."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class SignatureRefused(PalisadeError):
    """A signed record whose signature does not hold; `reason` is one of a bounded set."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"signature refused: {reason}")
        self.reason = reason


class StateRefused(PalisadeError):
    """Saved state (snapshot, respond state) that this version cannot take back: start cold and say so."""
