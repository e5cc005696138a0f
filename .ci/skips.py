"""Fails when a test was skipped that is not in the list of allowed skips: `skips.py JUNIT_XML ALLOWED`."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def main(report: Path, allowed: Path) -> int:
    lines = [line.partition("#")[0].strip() for line in allowed.read_text().splitlines()]
    named = {line for line in lines if line}
    skipped = {
        f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        for case in ET.parse(report).iter("testcase")  # noqa: S314  our own pytest wrote it
        if case.find("skipped") is not None
    }
    for name in sorted(skipped - named):
        print(f"skipped and not allowed: {name}", file=sys.stderr)  # noqa: T201
    return 1 if skipped - named else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))
