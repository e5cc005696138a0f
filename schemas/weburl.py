"""URLs that Palisade itself asks: plain parts, nothing hidden in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

MAX_URL: Final = 2_000
"""Characters of a URL."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_FIRST_FREE_PORT: Final = 1024
_PLAIN: Final = frozenset(map(chr, range(0x21, 0x7F))) - frozenset('\\"<>^`{|}')


@dataclass(frozen=True, slots=True)
class WebUrl:
    """A checked URL. `host` has no brackets; `target` is path and query, as the request line has it."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, text: str) -> WebUrl:
        """The parts of `text`. Raises ValueError that says what to change, without repeating the URL.

        Refused: other schemes than http and https, a user or password, a fragment, characters that are no part of a URL,
        and ports below 1024 but 80 and 443, behind which no web server is expected (mail, SSH, databases' old ports).
        """
        if len(text) > MAX_URL or not _PLAIN.issuperset(text):
            raise ValueError(f"the URL is no URL of at most {MAX_URL} plain ASCII characters; encode the others")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ValueError("the URL is no URL; write https://host[:port]/path") from error
        scheme: Literal["http", "https"]
        if parts.scheme == "https":
            scheme = "https"
        elif parts.scheme == "http":
            scheme = "http"
        else:
            raise ValueError("the URL begins neither with https:// nor with http://")
        if "@" in parts.netloc:
            raise ValueError("the URL holds a user or password; remove it, messages are signed")
        if not parts.hostname:
            raise ValueError("the URL names no host; write https://host[:port]/path")
        if "#" in text:
            raise ValueError("the URL has a fragment, which is never sent; remove it")
        port = _DEFAULT_PORTS[scheme] if port is None else port
        if port not in (80, 443) and port < _FIRST_FREE_PORT:
            raise ValueError(f"the URL has port {port}; use 80, 443 or one from {_FIRST_FREE_PORT} on")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(scheme, parts.hostname, port, target)

    @property
    def authority(self) -> str:
        """The value of a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"
