"""A disk that can be filled: a tmpfs where this user may mount one, else a folder that takes no files for a while."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

MIB = 1 << 20
SIZE = 128 * MIB


class Disk(Protocol):
    """`whole`: everything in the folder feels it, not the snapshots alone."""

    whole: bool

    def fill(self) -> None:
        """Takes what is free now; again, what has become free since."""
        ...

    def free(self) -> None: ...


class Tmpfs:
    """A file system of its own, filled to the last byte."""

    whole = True

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def fill(self) -> None:
        with self._filler.open("ab", buffering=0) as filler:
            try:
                while True:
                    filler.write(os.urandom(MIB // 4))
            except OSError:
                return

    def free(self) -> None:
        self._filler.unlink()


class Unusable:
    """The folder of snapshots is a file meanwhile, which no user writes into, not even root."""

    whole = False

    def __init__(self, folder: Path) -> None:
        self._snapshots, self._aside = folder / "snapshots", folder / "snapshots-aside"

    def fill(self) -> None:
        if self._aside.exists():
            return
        self._snapshots.rename(self._aside)
        self._snapshots.write_text("")

    def free(self) -> None:
        self._snapshots.unlink()
        self._aside.rename(self._snapshots)


@contextmanager
def disk(folder: Path) -> Iterator[Disk]:
    """A disk under `folder`, which is made."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        yield Unusable(folder)
        return
    try:
        yield Tmpfs(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
