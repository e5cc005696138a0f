"""What stands behind the HTTP port: whose token it is, what they may run, and the engine sessions that run it."""

from __future__ import annotations

import contextlib
import hmac
import json
import queue
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from streams.audit.engine import ARROW_SETTINGS, DATABASE, Answer, EmbeddedClickHouse, EngineSession, quoted
from streams.audit.sql_gate import admit
from streams.audit.sql_vocabulary import FORMATS

Role = Literal["reader", "writer"]


@dataclass(frozen=True, slots=True)
class PortLimits:
    """Bounds of the port. What goes beyond is answered with an error, never queued without end."""

    reader_body_bytes: int = 1 << 20  # the gate reads 20,000 characters; the rest is for parameters
    writer_body_bytes: int = 256 << 20  # 50,000 wide rows are about 30 MB
    rows: int = 1_000_000  # of one answer to a reader
    answer_bytes: int = 128 << 20  # an answer is built in memory before it is sent
    seconds: float = 15.0  # one reader's query, looked at between its blocks of rows
    memory_bytes: int = 512 << 20  # one reader's query
    readers: int = 4  # queries of readers at once
    wait_seconds: float = 2.0  # for one of those places, then 503
    connections: int = 64  # a thread each
    sessions: int = 32  # of the writer; the one idle for longest goes first
    idle_seconds: float = 30.0  # of a connection


class Refused(Exception):
    """Answered as an error: HTTP status and ClickHouse's number and name for it."""

    def __init__(self, status: int, code: int, name: str, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message} ({name})")
        self.status, self.code = status, code


@dataclass(frozen=True, slots=True)
class Insert:
    """An INSERT whose rows stand outside of it: `head` up to the columns, `clause` its SETTINGS, `fmt` of the rows."""

    head: str
    clause: str
    fmt: str


@dataclass(frozen=True, slots=True)
class Request:
    """One statement as it came, and the query string sorted by what it means.

    `sql` may hold bytes that are no UTF-8 as surrogates. An `insert` has its rows in `data`.
    """

    sql: str
    insert: Insert | None
    data: bytes
    parameters: Mapping[str, str]
    settings: Mapping[str, str]
    database: str
    session_id: str
    query_id: str
    fmt: str


class Desk:
    """Decides who asks and runs what they may run. Shared by all connections."""

    def __init__(self, engine: EmbeddedClickHouse, tokens: Mapping[Role, str], limits: PortLimits) -> None:
        self._engine, self._limits = engine, limits
        self._tokens = {role: token.encode() for role, token in tokens.items()}
        self._sessions: OrderedDict[str, _WriterSession] = OrderedDict()
        self._guard = threading.Lock()
        self._closed = False
        self._readers: queue.SimpleQueue[EngineSession] = queue.SimpleQueue()
        for _ in range(limits.readers):
            self._readers.put(engine.session(_reader_settings(limits)))
        self.timezone = engine.command("SELECT timezone()")

    def role(self, user: str | None, token: str) -> Role:
        """Whose token it is. Every token is compared in constant time; a user name, where given, has to match."""
        matches = [role for role, known in self._tokens.items() if hmac.compare_digest(known, token.encode())]
        if not matches or user not in (None, matches[0]):
            raise Refused(
                403, 516, "AUTHENTICATION_FAILED", "wrong user or token: reader or writer, the token as password"
            )
        return matches[0]

    def body_bytes(self, role: Role) -> int:
        return self._limits.writer_body_bytes if role == "writer" else self._limits.reader_body_bytes

    @property
    def busy_readers(self) -> int:
        """Readers' queries that run now, of at most `PortLimits.readers`."""
        return self._limits.readers - self._readers.qsize()

    def run(self, role: Role, request: Request) -> Answer:
        return self._read(request) if role == "reader" else self._write(request)

    def _read(self, request: Request) -> Answer:
        if request.settings:
            raise Refused(403, 164, "READONLY", f"a reader may not set {', '.join(sorted(request.settings))[:200]}")
        if request.database not in ("", "default", DATABASE):
            raise Refused(403, 497, "ACCESS_DENIED", f"readers see the database {DATABASE} only")
        if bad := [name for name in request.parameters if not _NAME.fullmatch(name)]:
            raise Refused(400, 36, "BAD_ARGUMENTS", f"{bad[0][:40]!r} is no parameter name")
        if request.fmt not in FORMATS:
            raise Refused(404, 73, "UNKNOWN_FORMAT", f"format {request.fmt[:40]!r} is not given here")
        try:
            session = self._readers.get(timeout=self._limits.wait_seconds)
        except queue.Empty:
            raise Refused(503, 202, "TOO_MANY_SIMULTANEOUS_QUERIES", "all readers are busy, try again") from None
        try:
            # Reading hostile SQL can cost half a second of this process: only those with a place may spend it.
            answer = session.run(admit(request.sql), request.fmt, request.parameters)
        finally:
            self._give_back(session)
        # ClickHouse lifts its limits on rows and bytes where a query reads no table; the one on memory holds there too.
        if len(answer.data) > self._limits.answer_bytes:
            raise Refused(
                500, 396, "TOO_MANY_ROWS_OR_BYTES", f"an answer has at most {self._limits.answer_bytes} bytes"
            )
        return answer

    def _write(self, request: Request) -> Answer:
        with self._writer_session(request.session_id) as session, _settings(session, request.settings):
            if request.database:
                session.run(f"USE `{request.database.replace('`', '')}`")
            if request.insert is None:
                sql = request.sql.encode("utf-8", "surrogateescape")
                return session.run(sql, request.fmt, request.parameters)
            return session.insert(request.insert.head, request.insert.fmt, request.data, request.insert.clause)

    @contextmanager
    def _writer_session(self, session_id: str) -> Iterator[EngineSession]:
        if not session_id:
            with contextlib.closing(self._engine.session({"async_insert": "0"})) as once:
                yield once
            return
        kept = self._kept(session_id)
        if not kept.busy.acquire(blocking=False):
            raise Refused(500, 373, "SESSION_IS_LOCKED", "one query at a time in a session")
        try:
            yield kept.session
        finally:
            kept.busy.release()

    def _kept(self, session_id: str) -> _WriterSession:
        with self._guard:
            kept = self._sessions.get(session_id)
            if kept is None:
                kept = self._sessions[session_id] = _WriterSession(self._engine.session({"async_insert": "0"}))
            self._sessions.move_to_end(session_id)
            surplus = len(self._sessions) - self._limits.sessions
            for oldest in [key for key, one in self._sessions.items() if not one.busy.locked()][: max(0, surplus)]:
                self._sessions.pop(oldest).session.close()
            return kept

    def _give_back(self, session: EngineSession) -> None:
        with self._guard:
            if not self._closed:
                self._readers.put(session)
                return
        session.close()

    def close(self) -> None:
        """Does not wait for readers' queries: the session of each is closed when it ends."""
        with self._guard:
            self._closed = True
            idle = [one.session for one in self._sessions.values()]
            self._sessions.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._readers.get_nowait())
        for session in idle:
            session.close()


class _WriterSession:
    """A session that a client named: it keeps SET, USE and temporary tables from one request to the next."""

    def __init__(self, session: EngineSession) -> None:
        self.session, self.busy = session, threading.Lock()


def _reader_settings(limits: PortLimits) -> dict[str, str]:
    return {
        **ARROW_SETTINGS,
        "max_execution_time": str(limits.seconds),
        "max_memory_usage": str(limits.memory_bytes),
        "max_result_rows": str(limits.rows),
        "max_result_bytes": str(limits.answer_bytes),
        "result_overflow_mode": "throw",
        "max_threads": "2",
        # Time is looked at between blocks: they are small, and so is what one call may make up.
        "max_block_size": "1024",
        "function_range_max_elements_in_block": "100000",
        "readonly": "1",  # last: nothing can be set after it
    }


_INSERT = re.compile(
    r"""\s*(?P<head>INSERT\s+INTO\s+(?:TABLE\s+)?(?:[\w.]|`[^`]*`|"[^"]*")+\s*
        (?:\((?:[^()`"]|`(?:[^`\\]|\\.)*`|"(?:[^"\\]|\\.)*")*\))?)\s*
        (?P<clause>SETTINGS\s[^();]*?)?\s*\bFORMAT\s+(?P<format>\w+)""",
    re.VERBOSE | re.IGNORECASE,
)


def split_insert(body: bytes) -> tuple[Insert, bytes] | None:
    """`INSERT INTO t (a) FORMAT X` and the rows behind it; None where the body is no such statement."""
    found = _INSERT.match(body[:65_536].decode("latin-1"))  # one character a byte, so that positions agree
    if found is None:
        return None
    try:
        head, clause = (found[part].encode("latin-1").decode() if found[part] else "" for part in ("head", "clause"))
    except UnicodeDecodeError:
        return None  # as a whole it goes to the engine, which says what is wrong with it
    # Rows begin after one blank: a second one belongs to them (a Native block may well start with byte 9, 10 or 32).
    start = found.end() + (2 if body[found.end() : found.end() + 2] == b"\r\n" else 1)
    return Insert(head, clause, found["format"]), body[start:]


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@contextmanager
def _settings(session: EngineSession, settings: Mapping[str, str]) -> Iterator[None]:
    """Settings of one request, put back afterwards: in a session they would stick."""
    if not settings:
        yield
        return
    for name in settings:
        if not _NAME.fullmatch(name):
            raise Refused(404, 115, "UNKNOWN_SETTING", f"{name[:40]!r} is no setting")
    names = "[" + ", ".join(quoted(name) for name in settings) + "]"
    current = "SELECT name, value, changed FROM system.settings WHERE has({names:Array(String)}, name)"
    lines = session.run(current, "JSONEachRow", {"names": names}).data
    before = [json.loads(line) for line in lines.splitlines()]
    try:
        for name, value in settings.items():
            session.run(f"SET {name} = {quoted(value)}")
        yield
    finally:
        for row in before:
            session.run(f"SET {row['name']} = {quoted(row['value']) if row['changed'] else 'DEFAULT'}")
