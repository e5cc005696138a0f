"""One seam to ClickHouse, twice: embedded in this process (chdb) and on a server (HTTP), with the same SQL and Arrow.

Both implementations may be called from many threads at once. Failures are typed: `retryable` says whether the same
call can succeed later without anybody changing it, and every message says what to do about it.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable
from urllib.parse import urlencode, urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.binding import DT64Param, format_bind_value
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError as DriverError
from clickhouse_connect.driver.exceptions import DataError, ProgrammingError

DATABASE = "palisade"

Scalar = str | int | float | bool | datetime | None
Parameter = Scalar | Sequence[Scalar]


class ClickHouseError(Exception):
    """A call to ClickHouse failed. `code` is ClickHouse's own error number, None where the engine never answered."""

    retryable: ClassVar[bool] = False

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class EngineMissing(ClickHouseError):
    """The embedded engine is not installed."""


class PathInUse(ClickHouseError):
    """The data directory cannot be opened: another process owns it, or this process already opened another one."""


class EngineClosed(ClickHouseError):
    """The engine was closed, or belongs to the process that this one was forked from."""


class Unavailable(ClickHouseError):
    """The server does not answer, or asks to be left alone for a while."""

    retryable = True


class StorageFull(ClickHouseError):
    """The disk is full; what was acknowledged is stored, and inserts work again once space is freed."""

    retryable = True


class NotAuthenticated(ClickHouseError):
    """The server does not know this user and password."""


class NotPermitted(ClickHouseError):
    """The user may not do this (readonly, or a missing grant)."""


class LimitExceeded(ClickHouseError):
    """The statement ran into a limit on time, memory or rows."""


class StatementRefused(ClickHouseError):
    """The statement itself is wrong for this database: syntax, types, a table that does not exist."""


class RowRefused(StatementRefused):
    """A value of some row is none that its column can hold; the other rows of the insert can be stored."""


# Numbers of src/Common/ErrorCodes.cpp; every other number means that the statement itself is at fault.
_BY_CODE: Mapping[int, type[ClickHouseError]] = {
    **dict.fromkeys((3, 209, 210, 202, 242, 252, 319, 425, 999), Unavailable),
    **dict.fromkeys((243, 75, 76), StorageFull),
    **dict.fromkeys((192, 193, 194, 516), NotAuthenticated),
    **dict.fromkeys((164, 291, 497), NotPermitted),
    **dict.fromkeys((158, 159, 160, 167, 168, 191, 241, 306, 307, 394, 396), LimitExceeded),
    **dict.fromkeys((6, 27, 33, 38, 41, 69, 70, 72, 117, 131, 321, 349, 407), RowRefused),
}
NO_SPACE = os.strerror(errno.ENOSPC)
_CODE = re.compile(r"Code: (\d+)\. ")
_TABLE = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]*\.)?[A-Za-z_][A-Za-z0-9_]*")


def error_for(message: str, code: int | None = None) -> ClickHouseError:
    """The typed error for an engine's message (`Code: 62. DB::Exception: ...`)."""
    if code is None and (found := _CODE.search(message)):
        code = int(found.group(1))
    kind: type[ClickHouseError] = StatementRefused if code is not None else Unavailable
    if (
        NO_SPACE in message
    ):  # in the middle of a write the system says it, and ClickHouse passes it on under many numbers
        return StorageFull(message.strip(), code)
    return _BY_CODE.get(code if code is not None else -1, kind)(message.strip(), code)


@runtime_checkable
class ClickHouse(Protocol):
    """What the audit needs of ClickHouse. Calls may come from several threads; each raises `ClickHouseError`."""

    def command(self, sql: str) -> str:
        """Run one statement; its answer as tab-separated text, empty for DDL."""

    def insert_arrow(self, table: str, rows: pa.Table, token: str | None = None) -> None:
        """Insert rows, columns by name, all or nothing per partition, acknowledged when stored.

        A table created with a deduplication window stores a token once: the same token with *other* rows is dropped in
        silence, so it must name exactly these rows. `table` is `name` (in database palisade) or `database.name`.
        """

    def query_arrow(self, sql: str, parameters: Mapping[str, Parameter] | None = None) -> pa.Table:
        """Run one SELECT without a FORMAT clause; `{name:Type}` in it takes `parameters[name]`."""

    def close(self) -> None:
        """Give everything back; closing twice is fine."""


def qualified(table: str) -> str:
    """`table` with its database. ValueError for anything but a plain name, since it becomes part of a statement."""
    if not _TABLE.fullmatch(table):
        raise ValueError(f"{table!r} is no table name: expected `name` or `database.name`")
    return table if "." in table else f"{DATABASE}.{table}"


def quoted(text: str) -> str:
    """A ClickHouse string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _bound(value: Parameter) -> Any:
    """The driver drops fractions of a second unless told that they matter."""
    return DT64Param(value) if isinstance(value, datetime) and value.microsecond else value


# --------------------------------------------------------------------------------------------------- embedded


@dataclass(frozen=True, slots=True)
class Answer:
    """What a statement returned: bytes in its format, and how much was read for it."""

    data: bytes
    rows_read: int
    bytes_read: int
    seconds: float


class EngineSession:
    """One chdb connection: settings (SET), database (USE) and temporary tables are its own; calls queue up on a lock."""

    def __init__(self, connection_string: str) -> None:
        self._connection: Any = _connect(connection_string)
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def run(self, sql: str | bytes, fmt: str = "TabSeparated", parameters: Mapping[str, str] | None = None) -> Answer:
        """Run SQL, answered in `fmt` unless the SQL names a FORMAT. `parameters` are in ClickHouse's escaped form.

        chdb runs several statements split by `;` in one call, and does not stop OUTFILE: hand in trusted SQL only.
        """
        self._check_owner()
        with self._lock:
            if self._connection is None:
                raise EngineClosed("the embedded ClickHouse is closed: open it again")
            try:
                result = self._connection.query(sql, fmt, params=dict(parameters or {}))
                return Answer(result.bytes(), result.rows_read(), result.bytes_read(), result.elapsed())
            except RuntimeError as failure:
                raise error_for(str(failure)) from failure

    def insert(self, head: str, fmt: str, data: bytes | memoryview, clause: str = "") -> Answer:
        """Insert encoded rows. `head` is the statement up to its columns, `clause` its SETTINGS, if any."""
        with _as_file(data) as path:
            return self.run(f"{head} FROM INFILE {quoted(path)} {clause} FORMAT {fmt}")

    def close(self, wait_s: float = -1) -> bool:
        """Whether it is closed: a call that is running is waited for, at most `wait_s` seconds (negative: to its end)."""
        self._check_owner()
        if not self._lock.acquire(timeout=wait_s):
            return False
        try:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        finally:
            self._lock.release()
        return True

    def _check_owner(self) -> None:
        # A forked child has no engine threads: its first call would hang for ever.
        if os.getpid() != self._pid:
            raise EngineClosed(
                "the embedded ClickHouse was opened before this process was forked: open it after, or spawn"
            )


class EmbeddedClickHouse:
    """The ClickHouse engine in this process, over a directory that only this process may open.

    A process holds one directory at a time, and a directory belongs to one process: the others read through the owner's
    HTTP port. Inserts and queries use connections of their own, so a slow query delays no insert. Costs about 190 MB.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sessions: weakref.WeakSet[EngineSession] = weakref.WeakSet()
        self._closed = False
        self._guard = threading.Lock()
        self._purged = time.monotonic()
        try:
            self._writer = self.session({"async_insert": "0", "insert_deduplicate": "1"})
            self._writer.run(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
            self._reader = self.session(ARROW_SETTINGS)
        except ClickHouseError:
            self.close()  # a half-open engine would hold the directory
            raise

    def session(self, settings: Mapping[str, str] | None = None) -> EngineSession:
        """A connection of its own; `settings` are applied in order (so `readonly` comes last)."""
        with self._guard:
            if self._closed:
                raise EngineClosed("the embedded ClickHouse is closed: open it again")
            session = EngineSession(f"{self.path}?{urlencode(ENGINE_SETTINGS)}")
            self._sessions.add(session)
        try:
            for name, value in (settings or {}).items():
                session.run(f"SET {name} = {quoted(value)}")
        except ClickHouseError:
            session.close()
            raise
        return session

    def command(self, sql: str) -> str:
        return self._writer.run(sql).data.decode("utf-8", "replace").rstrip("\n")

    def insert_arrow(self, table: str, rows: pa.Table, token: str | None = None) -> None:
        target = qualified(table)
        if rows.num_rows == 0:
            return
        columns = ", ".join("`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`" for name in rows.column_names)
        self._writer.insert(
            f"INSERT INTO {target} ({columns})",
            "ArrowStream",
            _arrow_stream(rows),
            f"SETTINGS insert_deduplication_token = {quoted(token)}" if token else "",
        )
        self._give_back()

    def _give_back(self) -> None:
        """The embedded engine keeps what merges have freed until it is asked to give it back to the machine."""
        if (now := time.monotonic()) - self._purged >= PURGE_S:
            self._purged = now
            with suppress(ClickHouseError):  # the rows are in: nothing of this may look like a failed insert
                self._writer.run(PURGE)
            pa.default_memory_pool().release_unused()

    def query_arrow(self, sql: str, parameters: Mapping[str, Parameter] | None = None) -> pa.Table:
        bound = {name: format_bind_value(_bound(value)) for name, value in (parameters or {}).items()}
        with pa.ipc.open_file(self._reader.run(sql, "Arrow", bound).data) as answer:
            return answer.read_all()

    def close(self) -> None:
        """Gives the directory back, unless a call still runs after `CLOSE_WAIT_S`: then the end of the process does."""
        with self._guard:
            self._closed = True
            sessions = list(self._sessions)
        until = time.monotonic() + CLOSE_WAIT_S
        for session in sessions:
            session.close(max(0.0, until - time.monotonic()))


PURGE, PURGE_S = "SYSTEM JEMALLOC PURGE", 15.0
"""It takes 2 to 5 ms."""

# Less than a supervisor's patience with SIGTERM. What was acknowledged is stored, closed or not.
CLOSE_WAIT_S = 5.0

ARROW_SETTINGS: Mapping[str, str] = {
    "output_format_arrow_string_as_string": "1",
    "output_format_arrow_compression_method": "none",  # it never leaves this machine
}


ENGINE_SETTINGS: Mapping[str, int] = {
    "mark_cache_size": 64 << 20,
    "primary_index_cache_size": 64 << 20,
    "index_mark_cache_size": 16 << 20,
    "query_condition_cache_size": 16 << 20,
    "compiled_expression_cache_size": 16 << 20,
}
"""Bytes of the engine's caches: 176 MB. Its own bounds are those of a server, 5 GiB for each of the first three."""


def _connect(path: str) -> Any:
    try:
        import chdb
    except ImportError as failure:
        raise EngineMissing('the embedded ClickHouse is missing: pip install "palisade[embedded]"') from failure
    try:
        return chdb.connect(path)
    except RuntimeError as failure:
        if "already initialized" in str(failure):
            raise PathInUse(
                f"this process already has another ClickHouse directory open, so it cannot open {path}: "
                "one directory a process; close the other one, or use a second process"
            ) from failure
        raise PathInUse(
            f"cannot open the ClickHouse directory {path}: another process owns it (read through the HTTP port of that "
            "process, or stop it), or this user may not write it"
        ) from failure


@contextmanager
def _as_file(data: bytes | memoryview) -> Iterator[str]:
    """A path under which the engine can read `data`: memory on Linux, so that no event rests on a temporary disk."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("palisade-insert", os.MFD_CLOEXEC)
        with open(descriptor, "wb") as spool:
            spool.write(data)
            spool.flush()
            yield f"/proc/{os.getpid()}/fd/{descriptor}"
    else:
        with tempfile.NamedTemporaryFile(prefix="palisade-insert-") as spool:
            spool.write(data)
            spool.flush()
            yield spool.name


def _arrow_stream(rows: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    # One record batch, so that one insert token stands for one block.
    whole = rows.combine_chunks()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    return memoryview(sink.getvalue())


# ----------------------------------------------------------------------------------------------------- server


class ServerClickHouse:
    """A ClickHouse server over HTTP. Connects on first use, so it can be made while the server is still down.

    `url` is `http(s)://host:port`; the password is the content of `password_file` (None: empty), read at each connect,
    so a rotated one is picked up. `timeout_s` bounds one call.
    """

    def __init__(
        self, url: str, user: str = "default", password_file: str | Path | None = None, timeout_s: float = 60.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ValueError("a ClickHouse URL: expected http(s)://host:port, the password in a file of its own")
        self._host, self._secure = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (8443 if self._secure else 8123)
        self._user, self._password_file, self._timeout_s = user, password_file, timeout_s
        self._connected: Client | None = None
        self._guard = threading.Lock()

    def command(self, sql: str) -> str:
        with self._client() as client:
            answer = client.raw_query(sql)
        return answer.decode("utf-8", "replace").rstrip("\n")

    def insert_arrow(self, table: str, rows: pa.Table, token: str | None = None) -> None:
        target = qualified(table)
        if rows.num_rows == 0:
            return
        settings = {"async_insert": "0"} | ({"insert_deduplication_token": token} if token else {})
        with self._client() as client:
            client.insert_arrow(target, rows.combine_chunks(), settings=settings)

    def query_arrow(self, sql: str, parameters: Mapping[str, Parameter] | None = None) -> pa.Table:
        bound = {name: _bound(value) for name, value in (parameters or {}).items()}
        with self._client() as client:
            return client.query_arrow(sql, parameters=bound, use_strings=True)

    def close(self) -> None:
        with self._guard:
            if self._connected is not None:
                self._connected.close()
                self._connected = None

    @contextmanager
    def _client(self) -> Iterator[Client]:
        try:
            yield self._connect()
        except DriverError as failure:
            error = self._typed(failure)
            if isinstance(error, NotAuthenticated):
                self.close()
            raise error from failure

    def _typed(self, failure: DriverError) -> ClickHouseError:
        code = getattr(failure, "code", None)
        if code is None and isinstance(failure, ProgrammingError | DataError):
            return StatementRefused(str(failure))  # the driver refused it before sending
        if code is None:
            return Unavailable(f"ClickHouse at {self._host}:{self._port} does not answer, try again later: {failure}")
        return error_for(str(failure), code)

    def _connect(self) -> Client:
        with self._guard:
            if self._connected is None:
                password = self._password()
                self._connected = clickhouse_connect.get_client(
                    host=self._host,
                    port=self._port,
                    secure=self._secure,
                    username=self._user,
                    password=password,
                    send_receive_timeout=self._timeout_s,
                    connect_timeout=5,
                    # A session allows one call at a time: threads share this client.
                    autogenerate_session_id=False,
                )
            return self._connected

    def _password(self) -> str:
        if self._password_file is None:
            return ""
        try:
            return Path(self._password_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise NotAuthenticated(
                f"clickhouse.password_file: {self._password_file} cannot be read: {why}; put the password alone in it"
            ) from None
