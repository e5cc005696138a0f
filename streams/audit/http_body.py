"""Bodies of HTTP requests and answers: chunks, compression and form fields, each read up to a bound and no further."""

from __future__ import annotations

import gzip
import importlib
import zlib
from collections.abc import Iterator
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, BinaryIO

_PIECE = 1 << 20
_MAX_LINE = 1024  # of a chunk's size and of a trailer


class BodyError(Exception):
    """The body cannot be read: `status` is the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_body(source: BinaryIO, length: str | None, chunked: bool, encoding: str, bound: int) -> bytes:
    """The decoded body, at most `bound` bytes before and after decompression (413 beyond)."""
    return _decompressed(_chunks(source, bound) if chunked else _counted(source, length, bound), encoding, bound)


def _counted(source: BinaryIO, length: str | None, bound: int) -> Iterator[bytes]:
    if length is None:
        return
    if not length.isascii() or not length.isdigit():
        raise BodyError(400, "Content-Length is no number")
    left = int(length)
    if left > bound:
        raise BodyError(413, f"the body has {left} bytes; at most {bound} are read")
    while left:
        piece = source.read(min(left, _PIECE))
        if not piece:
            raise BodyError(400, "the body ended early")
        left -= len(piece)
        yield piece


def _chunks(source: BinaryIO, bound: int) -> Iterator[bytes]:
    left = bound
    while True:
        line = source.readline(_MAX_LINE)
        try:
            size = int(line.split(b";")[0].strip(), 16)
        except ValueError:
            raise BodyError(400, "a chunk without its size") from None
        if size < 0 or size > left:
            raise BodyError(413, f"the body has more than {bound} bytes")
        if size == 0:
            break
        left -= size
        yield from _counted(source, str(size), size)
        source.readline(_MAX_LINE)
    for _ in range(32):
        if source.readline(_MAX_LINE) in (b"\r\n", b"\n", b""):
            return
    raise BodyError(400, "too many trailers")


def _decompressed(pieces: Iterator[bytes], encoding: str, bound: int) -> bytes:
    if encoding in ("", "identity"):
        return b"".join(pieces)
    decompressor = _decompressor(encoding)
    out = bytearray()
    try:
        for piece in pieces:
            # One byte more than allowed tells a bomb from a body that just fits.
            out += decompressor.decompress(piece, bound + 1 - len(out))
            if len(out) > bound:
                raise BodyError(413, f"the body unpacks to more than {bound} bytes")
    except BodyError:
        raise
    except Exception as failure:  # each of the three libraries has errors of its own
        raise BodyError(400, f"the body is no {encoding}: {failure}") from failure
    if not decompressor.eof:
        raise BodyError(400, f"the {encoding} body ended early")
    return bytes(out)


def _decompressor(encoding: str) -> Any:
    """An object with `decompress(data, most_bytes)` and `eof`."""
    if encoding in ("gzip", "deflate"):
        return zlib.decompressobj(wbits=47)
    if encoding == "lz4":
        return _lz4().LZ4FrameDecompressor()
    if encoding == "zstd":
        return _zstd().ZstdDecompressor()
    raise BodyError(415, f"Content-Encoding {encoding} is not known: gzip, deflate, lz4, zstd or none")


# Both come with clickhouse-connect, whose HTTP client uses them by default.
def _lz4() -> Any:
    return importlib.import_module("lz4.frame")


def _zstd() -> Any:
    try:
        return importlib.import_module("compression.zstd")
    except ImportError:
        return importlib.import_module("backports.zstd")


def compress(data: bytes, accepted: str) -> tuple[bytes, str | None]:
    """`data` under the first encoding of an Accept-Encoding header that is known here, and that encoding's name."""
    for name in (part.split(";")[0].strip().lower() for part in accepted.split(",")):
        if name == "lz4":
            return _lz4().compress(data), name
        if name == "zstd":
            return _zstd().compress(data), name
        if name == "gzip":
            return gzip.compress(data, compresslevel=1), name
    return data, None


def form_fields(body: bytes, content_type: str) -> dict[str, str]:
    """The text fields of a multipart form; a file in it is refused (400)."""
    head = b"Content-Type: " + content_type.encode("latin-1", "replace") + b"\r\n\r\n"
    fields: dict[str, str] = {}
    try:
        message = BytesParser(policy=HTTP).parsebytes(head + body)
        for part in message.iter_parts() if message.is_multipart() else ():
            name, payload = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
            if part.get_filename() is not None or not isinstance(name, str) or not isinstance(payload, bytes):
                raise BodyError(400, "external tables are not taken here: only text fields")
            fields[name] = payload.decode("utf-8", "replace")
    except BodyError:
        raise
    except Exception as failure:  # the parser of mail is not made for hostile text
        raise BodyError(400, f"the form cannot be read: {failure}") from failure
    return fields
