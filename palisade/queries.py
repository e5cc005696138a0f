"""Named queries: what an investigator asks of the audit, as parameterised SQL over the views."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from palisade.settings import Site
from schemas.errors import PalisadeError
from streams.audit.engine import ClickHouse, Parameter, ServerClickHouse, Unavailable


@dataclass(frozen=True, slots=True)
class Query:
    """A query and what it answers."""

    name: str
    answers: str
    sql: str


TIMELINE = Query(
    "timeline",
    "signals, decisions, commands and kill switches in the order in which they happened",
    """
SELECT * FROM (
SELECT broker_time AS at, 'signal' AS what, endpoint, if(subject_kind = 'caller', subject, '') AS caller,
       concat(kind, if(ifNull(version, 'default') IN ('', 'default'), '', concat(' of ', assumeNotNull(version))),
              ' ', state, ' (', severity, ')') AS happened,
       concat(JSONExtractString(evidence, 'features', 1), ' score ', toString(round(score, 2)), ' over ',
              toString(round(threshold, 2))) AS why
FROM palisade.signals
WHERE (endpoint = {endpoint:String} OR {endpoint:String} = '')
  AND (state IN ('opened', 'recovered') OR (state = 'updated' AND severity = 'critical' AND seq <= 1))
UNION ALL
SELECT broker_time, 'decision', endpoint, ifNull(caller, ''), concat(kind, ' ', outcome, ' (', mode, ')'), reason
FROM palisade.decisions
WHERE (endpoint = {endpoint:String} OR {endpoint:String} = '') AND reason != 'evidence_renewed'
UNION ALL
SELECT broker_time, 'command', ifNull(endpoint, ''), ifNull(caller, ''), concat(kind, ' by ', actor), reason
FROM palisade.commands
WHERE endpoint = {endpoint:String} OR {endpoint:String} = ''
UNION ALL
SELECT broker_time, 'kill switch', '', '', concat(if(kill, 'thrown by ', 'reset by '), actor), reason FROM palisade.kills
) ORDER BY at
""",
)
CALLER_SUMMARY = Query(
    "caller",
    "what a caller asked and was answered, by endpoint and who answered",
    """
SELECT endpoint, served_by, status, count() AS predictions, min(broker_time) AS first, max(broker_time) AS last,
       round(avg(latency_ms), 3) AS mean_latency_ms, any(caller_auth) AS identity
FROM palisade.predictions WHERE caller = {caller:String}
GROUP BY endpoint, served_by, status ORDER BY endpoint, predictions DESC
""",
)
CALLER_EVENTS = Query(
    "caller_events",
    "which detectors fired about a caller, and when it was limited",
    """
SELECT * FROM (
SELECT broker_time AS at, 'signal' AS what, endpoint, concat(kind, ' ', state) AS happened, severity AS why
FROM palisade.signals WHERE subject = {caller:String} AND state != 'updated'
UNION ALL
SELECT broker_time, 'decision', endpoint, concat(kind, ' ', outcome),
       concat(reason, if(isNull(rate_per_s), '', concat(' to ', toString(round(assumeNotNull(rate_per_s), 2)), '/s')))
FROM palisade.decisions WHERE caller = {caller:String} AND reason != 'evidence_renewed'
) ORDER BY at
""",
)


def reader(site: Site) -> ClickHouse:
    """The audit as its reader: the server of the configuration, or the embedded port. Raises PalisadeError."""
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)  # what it says there, its exceptions say too
    config = site.config.clickhouse
    if config.url is not None:
        return ServerClickHouse(config.url, config.user, _password(site))
    address = site.data_dir / "clickhouse.json"
    if not address.exists():
        raise PalisadeError(
            f"no audit is running here ({address} is missing): start `palisade dev` or `palisade worker audit`"
        )
    found = json.loads(address.read_text())
    return ServerClickHouse(found["url"], found["user"], site.data_dir / found["token_file"])


def ask(engine: ClickHouse, query: Query, parameters: dict[str, Parameter]) -> pa.Table:
    """The rows that answer a query. Raises PalisadeError if nobody answers, ClickHouseError if the answer is no."""
    try:
        return engine.query_arrow(query.sql, parameters)
    except Unavailable as error:
        who = str(error).partition(", try again")[0]
        raise PalisadeError(f"{who}: start `palisade dev` or `palisade worker audit`, or the server") from error


def _password(site: Site) -> Path | None:
    file = site.config.clickhouse.password_file
    return site.home / file if file is not None else None
