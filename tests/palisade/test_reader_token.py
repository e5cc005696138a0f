"""The token of the audit's readers survives a disk that was full."""

from __future__ import annotations

from pathlib import Path

import pytest

from palisade.workers.audit import _reader_token
from streams.audit.http_port import MIN_TOKEN_BYTES


def test_a_token_is_made_once_and_is_its_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "data" / "token"
    token = _reader_token(path)
    assert len(token) >= MIN_TOKEN_BYTES
    assert _reader_token(path) == token
    assert path.stat().st_mode & 0o077 == 0
    assert [file.name for file in path.parent.iterdir()] == ["token"]


@pytest.mark.parametrize("left", ["", "short"])
def test_what_a_full_disk_left_of_a_token_is_made_anew(tmp_path: Path, left: str) -> None:
    path = tmp_path / "token"
    path.write_text(left)
    path.with_suffix(".new").write_text("half")
    assert len(_reader_token(path)) >= MIN_TOKEN_BYTES
    assert path.stat().st_mode & 0o077 == 0
