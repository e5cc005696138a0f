CREATE DATABASE IF NOT EXISTS palisade_raw;

CREATE DATABASE IF NOT EXISTS palisade;

CREATE TABLE IF NOT EXISTS palisade_raw.predictions
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `endpoint` LowCardinality(String),
    `features` String,
    `producer` String,
    `seq` Int64,
    `request_id` String,
    `model_version` LowCardinality(String),
    `artifact_digest` Nullable(String),
    `caller` String,
    `caller_auth` LowCardinality(String),
    `ts` Nullable(DateTime64(3, 'UTC')),
    `latency_ms` Nullable(Float64),
    `status` LowCardinality(String),
    `served_by` LowCardinality(String),
    `prediction` String,
    `weight` Float64,
    `origin` Nullable(String),
    `answer` Nullable(String),
    `reused_id` Bool
)
ENGINE = ReplacingMergeTree
ORDER BY (`endpoint`, `caller`, `topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 90 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.predictions AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `endpoint`, `features`, `producer`, `seq`, `request_id`, `model_version`, `artifact_digest`, `caller`, `caller_auth`, `ts`, `latency_ms`, `status`, `served_by`, `prediction`, `weight`, `origin`, `answer`, `reused_id`
FROM palisade_raw.predictions FINAL;

CREATE TABLE IF NOT EXISTS palisade_raw.reports
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `endpoint` LowCardinality(String),
    `guard_id` String,
    `boot_id` String,
    `seq` Int64,
    `from_ms` DateTime64(3, 'UTC'),
    `to_ms` DateTime64(3, 'UTC'),
    `epoch_applied` Int64,
    `killed` Bool,
    `live_version` LowCardinality(String),
    `versions` String,
    `asked` Int64,
    `refused` Int64,
    `routes` String,
    `dropped` Int64,
    `in_flight` Int64,
    `breaker` LowCardinality(String),
    `fallback_ok` Bool,
    `directive_refused` Nullable(String),
    `distinct_callers` Int64,
    `callers` String,
    `rest_callers` Int64,
    `rest_asked` Int64,
    `rest_served` Int64,
    `rest_refused` Int64
)
ENGINE = ReplacingMergeTree
ORDER BY (`endpoint`, `topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 90 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.reports AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `endpoint`, `guard_id`, `boot_id`, `seq`, `from_ms`, `to_ms`, `epoch_applied`, `killed`, `live_version`, `versions`, `asked`, `refused`, `routes`, `dropped`, `in_flight`, `breaker`, `fallback_ok`, `directive_refused`, `distinct_callers`, `callers`, `rest_callers`, `rest_asked`, `rest_served`, `rest_refused`
FROM palisade_raw.reports FINAL;

CREATE TABLE IF NOT EXISTS palisade_raw.answers
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `endpoint` LowCardinality(String),
    `request_id` String,
    `model_version` LowCardinality(String),
    `caller` String,
    `caller_auth` LowCardinality(String),
    `ts` Nullable(DateTime64(3, 'UTC')),
    `served_by` LowCardinality(String),
    `prediction` String,
    `weight` Float64
)
ENGINE = ReplacingMergeTree
ORDER BY (`endpoint`, `request_id`, `topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 400 DAY
SETTINGS index_granularity = 256, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.answers AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `endpoint`, `request_id`, `model_version`, `caller`, `caller_auth`, `ts`, `served_by`, `prediction`, `weight`
FROM palisade_raw.answers FINAL;

CREATE TABLE IF NOT EXISTS palisade_raw.feedback
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `endpoint` LowCardinality(String),
    `request_id` String,
    `label` String,
    `ts` Nullable(DateTime64(3, 'UTC')),
    `source` String,
    `source_auth` LowCardinality(String)
)
ENGINE = ReplacingMergeTree
ORDER BY (`topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 400 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.feedback AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `endpoint`, `request_id`, `label`, `ts`, `source`, `source_auth`
FROM palisade_raw.feedback FINAL;

CREATE TABLE IF NOT EXISTS palisade_raw.labelled
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `endpoint` LowCardinality(String),
    `request_id` String,
    `model_version` LowCardinality(String),
    `caller` String,
    `caller_auth` LowCardinality(String),
    `served_by` LowCardinality(String),
    `prediction` String,
    `label` String,
    `ts` DateTime64(3, 'UTC'),
    `prediction_ts` DateTime64(3, 'UTC'),
    `delay_ms` Int64,
    `source` String,
    `source_auth` LowCardinality(String),
    `weight` Float64,
    `prediction_topic` LowCardinality(String),
    `prediction_partition` Int64,
    `prediction_offset` Int64,
    `prediction_row` Int64,
    `feedback_partition` Int64,
    `feedback_offset` Int64,
    `feedback_row` Int64
)
ENGINE = ReplacingMergeTree
ORDER BY (`endpoint`, `model_version`, `topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 400 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.labelled AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `endpoint`, `request_id`, `model_version`, `caller`, `caller_auth`, `served_by`, `prediction`, `label`, `ts`, `prediction_ts`, `delay_ms`, `source`, `source_auth`, `weight`, `prediction_topic`, `prediction_partition`, `prediction_offset`, `prediction_row`, `feedback_partition`, `feedback_offset`, `feedback_row`
FROM palisade_raw.labelled
ORDER BY `topic`, `partition`, `offset`, `row`
LIMIT 1 BY `feedback_partition`, `feedback_offset`, `feedback_row`;

CREATE TABLE IF NOT EXISTS palisade_raw.label_joins
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `joined` Int64,
    `ambiguous` Int64,
    `no_prediction` Int64
)
ENGINE = ReplacingMergeTree
ORDER BY (`topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 400 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.label_joins AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `joined`, `ambiguous`, `no_prediction`
FROM palisade_raw.label_joins FINAL;

CREATE TABLE IF NOT EXISTS palisade_raw.verdicts
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `outcome` UInt8,
    `flags` UInt32,
    `endpoint` LowCardinality(String)
)
ENGINE = ReplacingMergeTree
ORDER BY (`topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 90 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.verdicts AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `outcome`, `flags`, `endpoint`
FROM palisade_raw.verdicts FINAL;

CREATE TABLE IF NOT EXISTS palisade_raw.block_readings
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `endpoint` String,
    `version` String,
    `profile_hash` String,
    `first_offset` Int64,
    `first_row` Int32,
    `last_offset` Int64,
    `last_row` Int32,
    `rows` Int32,
    `closed_by` String,
    `closed_ms` Int64,
    `detector` String,
    `score` Float64,
    `threshold` Float64,
    `state` String,
    `evidence` String
)
ENGINE = ReplacingMergeTree
ORDER BY (`endpoint`, `version`, `detector`, `last_offset`, `last_row`, `topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 90 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.block_readings AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `endpoint`, `version`, `profile_hash`, `first_offset`, `first_row`, `last_offset`, `last_row`, `rows`, `closed_by`, `closed_ms`, `detector`, `score`, `threshold`, `state`, `evidence`
FROM palisade_raw.block_readings
ORDER BY `topic`, `partition`, `offset`, `row`
LIMIT 1 BY `endpoint`, `version`, `detector`, `first_offset`, `first_row`, `last_offset`, `last_row`;

CREATE TABLE IF NOT EXISTS palisade_raw.p_values
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `p_value` Float32,
    `endpoint` LowCardinality(String),
    `version` LowCardinality(String),
    `detector` LowCardinality(String),
    `profile_hash` LowCardinality(String)
)
ENGINE = ReplacingMergeTree
ORDER BY (`endpoint`, `detector`, `topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 90 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.p_values AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `p_value`, `endpoint`, `version`, `detector`, `profile_hash`
FROM palisade_raw.p_values FINAL;

CREATE TABLE IF NOT EXISTS palisade_raw.signals
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `signal_id` String,
    `incident_id` String,
    `state` LowCardinality(String),
    `seq` Int64,
    `detector` LowCardinality(String),
    `detector_hash` String,
    `kind` LowCardinality(String),
    `endpoint` LowCardinality(String),
    `version` LowCardinality(Nullable(String)),
    `subject_kind` LowCardinality(String),
    `subject` String,
    `caller_auth` LowCardinality(Nullable(String)),
    `severity` LowCardinality(String),
    `score` Float64,
    `threshold` Float64,
    `usual_rate` Nullable(Float64),
    `rate` Nullable(Float64),
    `shares` String,
    `evidence` String,
    `atlas` String,
    `first_ms` DateTime64(3, 'UTC'),
    `at_ms` DateTime64(3, 'UTC'),
    `log_topic` LowCardinality(String),
    `log_partition` Int64,
    `log_offset` Int64,
    `log_row` Int64
)
ENGINE = ReplacingMergeTree
ORDER BY (`endpoint`, `topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 400 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.signals AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `signal_id`, `incident_id`, `state`, `seq`, `detector`, `detector_hash`, `kind`, `endpoint`, `version`, `subject_kind`, `subject`, `caller_auth`, `severity`, `score`, `threshold`, `usual_rate`, `rate`, `shares`, `evidence`, `atlas`, `first_ms`, `at_ms`, `log_topic`, `log_partition`, `log_offset`, `log_row`
FROM palisade_raw.signals
ORDER BY `topic`, `partition`, `offset`, `row`
LIMIT 1 BY `signal_id`;

CREATE TABLE IF NOT EXISTS palisade_raw.endpoint_states
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `endpoint` LowCardinality(String),
    `at_ms` DateTime64(3, 'UTC'),
    `guards_live` Int64,
    `epoch_applied` Int64,
    `fallback_ok` Bool,
    `killed` Bool,
    `live_version` LowCardinality(String),
    `asked_per_s` Float64,
    `active_callers` Int64,
    `median_caller_rate` Float64,
    `good_probes` Int64,
    `knocking` String,
    `guard_shares` String,
    `log_partition` Int64,
    `log_offset` Int64
)
ENGINE = ReplacingMergeTree
ORDER BY (`endpoint`, `topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 30 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.endpoint_states AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `endpoint`, `at_ms`, `guards_live`, `epoch_applied`, `fallback_ok`, `killed`, `live_version`, `asked_per_s`, `active_callers`, `median_caller_rate`, `good_probes`, `knocking`, `guard_shares`, `log_partition`, `log_offset`
FROM palisade_raw.endpoint_states FINAL;

CREATE TABLE IF NOT EXISTS palisade_raw.journal
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `entry` Int64,
    `epoch` Int64,
    `now_ms` DateTime64(3, 'UTC'),
    `inputs` String,
    `decisions` String
)
ENGINE = ReplacingMergeTree
ORDER BY (`topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 3650 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.journal AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `entry`, `epoch`, `now_ms`, `inputs`, `decisions`
FROM palisade_raw.journal FINAL;

CREATE TABLE IF NOT EXISTS palisade_raw.decisions
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `action_id` String,
    `kind` LowCardinality(String),
    `endpoint` LowCardinality(String),
    `caller` Nullable(String),
    `rate_per_s` Nullable(Float64),
    `reason` LowCardinality(String),
    `incident_id` Nullable(String),
    `signal_ids` String,
    `policy` LowCardinality(String),
    `policy_hash` String,
    `rule` LowCardinality(Nullable(String)),
    `actor` String,
    `mode` LowCardinality(String),
    `epoch` Int64,
    `issued_ms` DateTime64(3, 'UTC'),
    `expires_ms` Nullable(DateTime64(3, 'UTC')),
    `outcome` LowCardinality(String),
    `detail` String
)
ENGINE = ReplacingMergeTree
ORDER BY (`endpoint`, `topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 3650 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.decisions AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `action_id`, `kind`, `endpoint`, `caller`, `rate_per_s`, `reason`, `incident_id`, `signal_ids`, `policy`, `policy_hash`, `rule`, `actor`, `mode`, `epoch`, `issued_ms`, `expires_ms`, `outcome`, `detail`
FROM palisade_raw.decisions FINAL;

CREATE TABLE IF NOT EXISTS palisade_raw.directives
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `endpoint` LowCardinality(String),
    `epoch` Int64,
    `issued_ms` DateTime64(3, 'UTC'),
    `ttl_ms` Int64,
    `mode` LowCardinality(String),
    `route` LowCardinality(String),
    `route_action_id` Nullable(String),
    `probe_share` Float64,
    `limits` String,
    `guard_shares` String,
    `other_share` Float64
)
ENGINE = ReplacingMergeTree
ORDER BY (`endpoint`, `topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 400 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.directives AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `endpoint`, `epoch`, `issued_ms`, `ttl_ms`, `mode`, `route`, `route_action_id`, `probe_share`, `limits`, `guard_shares`, `other_share`
FROM palisade_raw.directives
ORDER BY `topic`, `partition`, `offset`, `row`
LIMIT 1 BY `endpoint`, `epoch`, `issued_ms`;

CREATE TABLE IF NOT EXISTS palisade_raw.kills
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `kill` Bool,
    `issued_ms` DateTime64(3, 'UTC'),
    `actor` String,
    `reason` String
)
ENGINE = ReplacingMergeTree
ORDER BY (`topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 3650 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.kills AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `kill`, `issued_ms`, `actor`, `reason`
FROM palisade_raw.kills
ORDER BY `topic`, `partition`, `offset`, `row`
LIMIT 1 BY `kill`, `issued_ms`, `actor`;

CREATE TABLE IF NOT EXISTS palisade_raw.commands
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `command_id` String,
    `kind` LowCardinality(String),
    `endpoint` LowCardinality(Nullable(String)),
    `caller` Nullable(String),
    `rate_per_s` Nullable(Float64),
    `actor` String,
    `reason` String,
    `issued_ms` DateTime64(3, 'UTC'),
    `expires_ms` DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (`topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 3650 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.commands AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `command_id`, `kind`, `endpoint`, `caller`, `rate_per_s`, `actor`, `reason`, `issued_ms`, `expires_ms`
FROM palisade_raw.commands
ORDER BY `topic`, `partition`, `offset`, `row`
LIMIT 1 BY `command_id`;

CREATE TABLE IF NOT EXISTS palisade_raw.dead_letters
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `log_topic` LowCardinality(String),
    `log_partition` Int64,
    `log_offset` Int64,
    `log_row` Int64,
    `reason` LowCardinality(String),
    `detail` String,
    `endpoint` LowCardinality(Nullable(String)),
    `caller` Nullable(String),
    `size` Int64,
    `sha256` String,
    `head` String,
    `headers` String,
    `broker_ms` DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (`topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 90 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.dead_letters AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `log_topic`, `log_partition`, `log_offset`, `log_row`, `reason`, `detail`, `endpoint`, `caller`, `size`, `sha256`, `head`, `headers`, `broker_ms`
FROM palisade_raw.dead_letters
ORDER BY `topic`, `partition`, `offset`, `row`
LIMIT 1 BY `log_topic`, `log_partition`, `log_offset`, `log_row`;

CREATE TABLE IF NOT EXISTS palisade_raw.profiles
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `key` String,
    `kind` LowCardinality(String),
    `content` String
)
ENGINE = ReplacingMergeTree
ORDER BY (`key`, `topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 3650 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.profiles AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `key`, `kind`, `content`
FROM palisade_raw.profiles
ORDER BY `topic`, `partition`, `offset`, `row`
LIMIT 1 BY `key`, `content`;

CREATE TABLE IF NOT EXISTS palisade_raw.lost
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `log_topic` LowCardinality(String),
    `log_partition` Int64,
    `first` Int64,
    `last` Int64,
    `at_ms` DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (`log_topic`, `topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 90 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.lost AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `log_topic`, `log_partition`, `first`, `last`, `at_ms`
FROM palisade_raw.lost FINAL;

CREATE TABLE IF NOT EXISTS palisade_raw.activations
(
    `topic` LowCardinality(String),
    `partition` Int32,
    `offset` Int64,
    `row` Int32,
    `broker_time` DateTime64(3, 'UTC'),
    `schema_version` Int64,
    `endpoint` LowCardinality(String),
    `version` LowCardinality(String),
    `profile_hash` String,
    `actor` String,
    `at_ms` DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY (`endpoint`, `topic`, `partition`, `offset`, `row`)
TTL toDateTime(broker_time) + INTERVAL 3650 DAY
SETTINGS index_granularity = 8192, non_replicated_deduplication_window = 1000;

CREATE OR REPLACE VIEW palisade.activations AS
SELECT `topic`, `partition`, `offset`, `row`, `broker_time`, `schema_version`, `endpoint`, `version`, `profile_hash`, `actor`, `at_ms`
FROM palisade_raw.activations FINAL;
