"""Whether a log of any process that the tests started holds a secret. The environment of all of them has one, too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "PALISADE_TEST_SECRET"
"""Set for the whole session: whoever writes out its environment tells it."""
VALUE = "canary-in-the-environment-5b1f"
SECRETS = re.compile(
    rb"canary-(?:in-the-environment|password|key-password)|PRIVATE KEY-----|whs(?:ec|k)_[A-Za-z0-9+/]{16}"
)
MAX_BYTES = 64 << 20
"""Of one log that are searched."""


def telling_logs(folder: Path) -> Iterator[str]:
    """Logs below `folder` that hold a secret, and what was found."""
    for log in folder.rglob("logs/*"):
        if log.is_file() and not log.is_symlink():
            with log.open("rb") as file:
                if found := SECRETS.search(file.read(MAX_BYTES)):
                    yield f"{log}: {found.group()!r}"
