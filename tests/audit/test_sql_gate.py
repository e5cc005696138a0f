"""What the gate refuses, with its named reason, and what it lets through with equal results."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streams.audit.engine import ClickHouseError, EmbeddedClickHouse
from streams.audit.sql_gate import MAX_CHARS, MAX_DEPTH, MAX_TOKENS, SqlRefused, admit, check_written
from tests.audit.hostile_sql import HOSTILE

FORENSIC = [
    "SELECT * FROM palisade.calls ORDER BY offset",
    "SELECT count() FROM calls",
    "SELECT caller, count() AS n, avg(latency_ms) FROM palisade.calls GROUP BY caller ORDER BY n DESC, caller LIMIT 5",
    "SELECT toStartOfMinute(ts) AS minute, countIf(status = 'error') AS errors FROM calls GROUP BY minute ORDER BY minute",
    "SELECT endpoint, quantile(0.99)(latency_ms), quantiles(0.5, 0.9)(latency_ms) FROM calls GROUP BY endpoint ORDER BY endpoint",
    "SELECT uniqExact(caller), uniq(caller), COUNT(DISTINCT caller) FROM calls WHERE endpoint = 'jfk'",
    "SELECT endpoint, argMax(caller, latency_ms), max(latency_ms) FROM calls GROUP BY 1 HAVING max(latency_ms) > 1 ORDER BY 1",
    "WITH slow AS (SELECT caller FROM calls WHERE latency_ms > 80) SELECT caller, count() FROM slow GROUP BY caller ORDER BY 1",
    "WITH busy AS (SELECT caller FROM calls GROUP BY caller) SELECT count() FROM calls WHERE caller IN busy",
    "WITH 50 AS bound SELECT count() FROM calls WHERE latency_ms > bound",
    "SELECT c.caller, w.owner FROM calls AS c INNER JOIN owners AS w ON c.caller = w.caller ORDER BY c.offset LIMIT 7",
    "SELECT caller, owner FROM calls LEFT JOIN owners USING (caller) ORDER BY offset LIMIT 7",
    "SELECT caller FROM calls WHERE caller NOT IN (SELECT caller FROM owners) ORDER BY offset LIMIT 3",
    "SELECT offset, sum(latency_ms) OVER (PARTITION BY caller ORDER BY offset ROWS BETWEEN 2 PRECEDING AND CURRENT ROW) AS s "
    "FROM calls ORDER BY offset LIMIT 20",
    "SELECT caller, row_number() OVER w AS rank FROM calls WINDOW w AS (PARTITION BY endpoint ORDER BY offset) ORDER BY offset LIMIT 9",
    "SELECT arrayMap(x -> round(x * 2, 3), features), arrayFilter((x, i) -> i > 1 AND x > 0, features, arrayEnumerate(features)) "
    "FROM calls ORDER BY offset LIMIT 4",
    "SELECT offset, f FROM calls ARRAY JOIN features AS f ORDER BY offset, f LIMIT 10",
    "SELECT features[1] AS first, tags['team'] AS team, (offset, caller).2 FROM calls ORDER BY offset LIMIT 5",
    "SELECT multiIf(latency_ms < 10, 'fast', latency_ms < 50, 'fair', 'slow') AS speed, count() FROM calls GROUP BY speed ORDER BY speed",
    "SELECT CASE WHEN status = 'ok' THEN 1 ELSE 0 END AS good, offset % 3 = 0 ? 'a' : 'b' AS third, -offset FROM calls ORDER BY offset LIMIT 5",
    "SELECT min(offset), max(offset), max(offset) - min(offset) + 1 = count() AS whole FROM calls FINAL PREWHERE offset > 3",
    "SELECT * FROM (SELECT 'calls' AS kind, count() FROM calls UNION ALL SELECT 'owners', count() FROM owners) AS u ORDER BY kind",
    "SELECT toStartOfInterval(ts, INTERVAL 10 SECOND) AS t, count() FROM calls GROUP BY t ORDER BY t WITH FILL STEP 10 LIMIT 30",
    "SELECT caller FROM calls WHERE match(caller, '^c\\\\d+$') AND caller LIKE 'c1%' AND NOT caller ILIKE '%9' ORDER BY offset LIMIT 5",
    "SELECT 'it''s', 'a\\'b', 'tab\\there', 'back\\\\slash', 'café', 'a\\d', '', 1e3, .5, 18446744073709551615, true, NULL, [1, 2], (1, 'x')",
    "SELECT CAST(offset AS String), latency_ms::Decimal(10, 2), toDateTime64('2026-01-02 03:04:05.678', 3, 'UTC') FROM calls "
    "ORDER BY offset LIMIT 2",
    "SELECT dateDiff('second', min(ts), max(ts)), formatDateTime(max(ts), '%Y-%m-%d %H:%i'), toDayOfWeek(max(ts)) FROM calls",
    "SELECT endpoint, caller, count() FROM calls GROUP BY ROLLUP(endpoint, caller) ORDER BY endpoint, caller LIMIT 20",
    "SELECT * EXCEPT (features, tags) FROM (SELECT * FROM calls ORDER BY offset LIMIT 3) AS head ORDER BY offset",
    "SELECT EXISTS(SELECT 1 FROM owners), (SELECT max(offset) FROM calls) AS last -- the newest\n/* of all */;",
    "SELECT caller, count() FROM calls AS c FULL OUTER JOIN owners AS o ON c.caller = o.caller GROUP BY caller ORDER BY caller",
    "SELECT JSONExtractString('{\"a\":\"b\"}', 'a'), simpleJSONExtractFloat('{\"x\":1.5}', 'x'), cityHash64('x')",
    "SELECT count() FROM system.settings WHERE name = 'readonly'",
]


@pytest.fixture(scope="module")
def audit(embedded_clickhouse: EmbeddedClickHouse) -> Iterator[EmbeddedClickHouse]:
    engine = embedded_clickhouse
    engine.command(
        "CREATE TABLE palisade.calls (offset Int64, endpoint LowCardinality(String), caller String, ts DateTime64(3, 'UTC'),"
        " latency_ms Float64, status String, features Array(Float64), tags Map(String, String))"
        " ENGINE = ReplacingMergeTree ORDER BY offset"
    )
    engine.command("CREATE TABLE palisade.owners (caller String, owner String) ENGINE = MergeTree ORDER BY caller")
    n = 300
    calls = {
        "offset": pa.array(range(n), pa.int64()),
        "endpoint": [("jfk", "lga", "ewr")[i % 3] for i in range(n)],
        "caller": [f"c{i % 17}" for i in range(n)],
        "ts": pa.array([1_760_000_000_000 + 137 * i for i in range(n)], pa.timestamp("ms", "UTC")),
        "latency_ms": [float((i * 37) % 101) for i in range(n)],
        "status": ["error" if i % 11 == 0 else "ok" for i in range(n)],
        "features": [[i / 7, -i / 3, float(i)] for i in range(n)],
        "tags": pa.array([[("team", f"t{i % 4}")] for i in range(n)], pa.map_(pa.string(), pa.string())),
    }
    engine.insert_arrow("calls", pa.table(calls))
    engine.insert_arrow("owners", pa.table({"caller": [f"c{i}" for i in range(0, 17, 2)], "owner": list("abcdefghi")}))
    yield engine
    engine.command("DROP TABLE palisade.calls")
    engine.command("DROP TABLE palisade.owners")


@pytest.mark.parametrize("sql", FORENSIC)
def test_a_forensic_query_is_admitted_and_gives_the_same_rows(audit: EmbeddedClickHouse, sql: str) -> None:
    free = audit.session({"output_format_arrow_string_as_string": "1"})
    free.run("USE palisade")

    gated = audit.query_arrow(admit(sql))

    with pa.ipc.open_file(free.run(sql, "Arrow").data) as answer:
        assert gated.equals(answer.read_all())
    free.close()


@pytest.mark.parametrize("sql", FORENSIC)
def test_what_was_admitted_is_admitted_again_unchanged(sql: str) -> None:
    once = admit(sql)

    assert admit(once) == once


def test_parameters_survive_with_their_types(audit: EmbeddedClickHouse) -> None:
    sql = admit(
        "SELECT caller FROM calls WHERE caller = {c:String} AND offset >= {o:UInt64} AND endpoint IN {e:Array(String)} LIMIT 1"
    )

    assert "{c: String}" in sql
    assert audit.query_arrow(sql, {"c": "c3", "o": 3, "e": ["jfk"]}).to_pylist() == [{"caller": "c3"}]


def test_a_common_format_is_kept(audit: EmbeddedClickHouse) -> None:
    assert (
        audit.command(admit("SELECT caller FROM calls ORDER BY offset LIMIT 1 FORMAT JSONEachRow")) == '{"caller":"c0"}'
    )


def test_comments_and_a_closing_semicolon_do_not_reach_the_engine() -> None:
    assert admit("SELECT 1 /* INTO OUTFILE 'x' */ -- ; DROP TABLE t\n;;") == "SELECT 1"


@pytest.mark.parametrize(("sql", "reason"), HOSTILE)
def test_hostile_sql_is_refused_by_name(sql: str, reason: str) -> None:
    with pytest.raises(SqlRefused) as refused:
        admit(sql)

    assert refused.value.reason == reason
    assert "Allowed: one SELECT" in refused.value.explanation


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1 INTO OUTFILE 'x'",
        "SELECT 1; SELECT 2",
        'SELECT 1 SETTINGS "readonly" = 0',
        "SELECT * FROM file('/etc/passwd')",
        "SELECT * FROM \"file\"('/etc/passwd')",
        "SELECT * FROM \"file\"  ('/etc/passwd')",
        "SELECT * FROM `file`('/etc/passwd')",
        "SELECT 'a\\' INTO OUTFILE 'x' --'",
        "SELECT 1 -- 2",
        "SELECT 1 /* 2 */",
        "SELECT 1 # 2",
        "SELECT $$x$$",
        "SELECT 'open",
        "SELECT {x:Identifier}",
        "SELECT {x: Identifier}",
        "SELECT users",
        "SELECT 1\n",
        "SELECT é",
        "SELECT 1abc",
        "SELECT @x",
    ],
)
def test_the_second_layer_alone_refuses_what_the_first_should_have(text: str) -> None:
    with pytest.raises(SqlRefused):
        check_written(text)


def test_a_query_at_its_bounds_passes_and_one_beyond_is_refused() -> None:
    assert admit("SELECT " + "(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH)
    with pytest.raises(SqlRefused, match="too_deep"):
        admit("SELECT " + "(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1))
    with pytest.raises(SqlRefused, match="too_long"):
        admit("SELECT '" + "x" * MAX_CHARS + "'")
    with pytest.raises(SqlRefused, match="too_long"):
        admit("SELECT " + "1," * MAX_TOKENS + "1")


_WORDS = """SELECT FROM palisade.t system.settings system.users WITH AS ( ) , ; ' " ` -- /* */ # \\ \n { } [ ] -> - + * / % :: : ? @ $
    INTO OUTFILE 'x' FORMAT Native SETTINGS a=1 file url IN NOT UNION ALL JOIN ON x 1 1e9 0x1 count numbers CASE WHEN END
    INTERVAL DAY CAST {p:String} {p:Identifier} FINAL ARRAY LIMIT BY OVER PARTITION EXCEPT * x.y 'a''b' é"""
PIECES = st.sampled_from([*_WORDS.split(), "\u200b", "\x00", "\ud800"])


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.text(max_size=200), st.lists(PIECES, max_size=40).map(" ".join), st.lists(PIECES, max_size=40).map("".join)
    )
)
@example("SELECT " + "(" * 5000)
@example("SELECT " + "NOT " * 3000)
@example("SELECT '" + "\\" * 999)
@example("SELECT $$")
def test_the_gate_answers_with_sql_or_a_refusal_whatever_comes(text: str) -> None:
    try:
        admitted = admit(text)
    except SqlRefused:
        return

    assert admit(admitted) == admitted


ESCAPED = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "\\n",
                "\\t",
                "\\\\",
                "\\'",
                "''",
                "\\0",
                "\\d",
                "\\%",
                "\\_",
                "\\x41",
                "\\N",
                "%",
                "-- ",
                "/*",
                "*/",
                ";",
                "{a:Int}",
            ]
        ),
        st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="'\\"),
    ),
    max_size=20,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(ESCAPED)
def test_a_string_means_the_same_after_the_gate(embedded_clickhouse: EmbeddedClickHouse, inside: str) -> None:
    sql = f"SELECT hex('{inside}') AS s"
    try:
        expected = embedded_clickhouse.command(sql)
    except ClickHouseError:
        return

    assert embedded_clickhouse.command(admit(sql)) == expected
