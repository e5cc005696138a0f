"""Targets that people and programs write by hand: configuration, policies, SQL for the reader, HTTP bodies and forms."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Hashable, Sequence
from pathlib import Path

from palisade.settings import default_policy_text, load, read_yaml
from schemas.config import PolicyConfig
from schemas.errors import ConfigError
from streams.audit.http_body import BodyError, form_fields, read_body
from streams.audit.http_desk import split_insert
from streams.audit.sql_gate import SqlRefused, admit
from tests.fuzz.case import Case, Execute, Target

YAML = """\
kafka: {bootstrap: 127.0.0.1:9092, partitions: 3, extra: {linger.ms: 5}}
clickhouse: {url: "http://x:8123", user: u, port: 0}
redaction_key_file: palisade.yaml
endpoints:
  - &a {name: credit, caller_rate_max: 50, allowlist: [ann, 'Acme Corp!'], sensitive: {ssn: drop, age: {bucket: 10}}}
  - {name: spam, mode: enforce, false_alarms_per_30_days: 0.5}
"""
SQL = (
    "SELECT caller, count() FROM palisade.predictions WHERE ts > now() - 5 GROUP BY caller ORDER BY 2 DESC LIMIT 10",
    "WITH x AS (SELECT 1 AS a) SELECT a FROM x UNION ALL SELECT toInt64(offset) FROM palisade.verdicts FORMAT JSON",
    "SELECT quantile(0.5)(latency_ms), arrayMap(x -> x + 1, [1, 2]), {p:String} FROM palisade.predictions AS p JOIN "
    "palisade.signals AS s USING endpoint WHERE caller LIKE 'a%' AND s.kind IN ('errors') SETTINGS max_threads = 1",
    "SELECT * FROM system.settings", "SELECT * FROM file('/etc/passwd')", "SELECT 1 INTO OUTFILE 'x'",
)  # fmt: skip
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="query"\r\n\r\nSELECT 1\r\n--b\r\n'
    b'Content-Disposition: form-data; name="param_x"\r\n\r\n5\r\n--b--\r\n'
)


def configuration() -> Target:
    """`palisade.yaml`, whole."""

    def make() -> Execute:
        folder = Path(tempfile.mkdtemp(prefix="palisade-fuzz-"))

        def execute(cases: Sequence[Case]) -> Hashable:
            path = folder / "palisade.yaml"
            path.write_bytes(cases[0].value or b"")
            return len(load(path).config.endpoints)

        return execute

    return Target("configuration", make, lambda: [Case(YAML.encode()), Case(b"")], declared=(ConfigError,), most=1)


def policy() -> Target:
    """A policy file."""

    def make() -> Execute:
        folder = Path(tempfile.mkdtemp(prefix="palisade-fuzz-"))

        def execute(cases: Sequence[Case]) -> Hashable:
            path = folder / "policy.yaml"
            path.write_bytes(cases[0].value or b"")
            return len(read_yaml(path, PolicyConfig).rules)

        return execute

    return Target("policy", make, lambda: [Case(default_policy_text().encode())], declared=(ConfigError,), most=1)


def sql() -> Target:
    """What a reader of the audit asks: written out again, or refused with a reason."""

    def make() -> Execute:
        def execute(cases: Sequence[Case]) -> Hashable:
            return len(admit((cases[0].value or b"").decode("utf-8", "replace"))) // 50

        return execute

    return Target("sql", make, lambda: [Case(text.encode()) for text in SQL], declared=(SqlRefused,), most=1)


def http_body() -> Target:
    """The body of a request to the audit's port: counted, chunked, compressed; an insert is told apart from its rows."""

    def make() -> Execute:
        def execute(cases: Sequence[Case]) -> Hashable:
            (case,) = cases
            told = {name: (value or b"").decode("latin-1") for name, value in case.headers}
            chunked, length = "chunked" in told, told.get("length", str(len(case.value or b"")))
            body = read_body(io.BytesIO(case.value or b""), length, chunked, told.get("encoding", ""), 100_000)
            found = split_insert(body)
            return (chunked, told.get("encoding"), None if found is None else found[0].fmt)

        return execute

    def seeds() -> Sequence[Case]:
        from streams.audit.http_body import compress

        insert = b"INSERT INTO t (a, b) SETTINGS async_insert = 0 FORMAT JSONEachRow\n" + b'{"a": 1, "b": "x"}'
        cases = [Case(insert), Case(b"5\r\nhello\r\n0\r\n\r\n", None, (("chunked", b""),))]
        for name in ("gzip", "lz4", "zstd"):
            content, _ = compress(insert * 5, name)
            cases.append(Case(content, None, (("encoding", name.encode()),)))
        return cases

    return Target("http body", make, seeds, declared=(BodyError,), most=1)


def form() -> Target:
    """A multipart form."""

    def make() -> Execute:
        def execute(cases: Sequence[Case]) -> Hashable:
            return tuple(sorted(form_fields(cases[0].value or b"", "multipart/form-data; boundary=b")))[:3]

        return execute

    return Target("form", make, lambda: [Case(FORM)], declared=(BodyError,), most=1)
