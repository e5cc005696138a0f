-- Who may do what with the audit: to be run by somebody who manages access, again after each upgrade.
-- The users can connect from nowhere until they are given a password and hosts, such as
--   ALTER USER palisade_audit IDENTIFIED WITH sha256_password BY '...' HOST IP '10.0.0.0/8';
-- A server that takes no user without a password: make the users first, and leave their CREATE USER out.

-- writer: `palisade worker audit`: puts rows in, and finds the prediction of a late label; changes and removes nothing
CREATE ROLE IF NOT EXISTS palisade_writer;

GRANT
    INSERT ON palisade_raw.predictions,
    INSERT ON palisade_raw.reports,
    INSERT, SELECT ON palisade_raw.answers,
    INSERT, SELECT ON palisade_raw.feedback,
    INSERT ON palisade_raw.labelled,
    INSERT, SELECT ON palisade_raw.label_joins,
    INSERT ON palisade_raw.verdicts,
    INSERT ON palisade_raw.block_readings,
    INSERT ON palisade_raw.p_values,
    INSERT ON palisade_raw.signals,
    INSERT ON palisade_raw.endpoint_states,
    INSERT ON palisade_raw.journal,
    INSERT ON palisade_raw.decisions,
    INSERT ON palisade_raw.directives,
    INSERT ON palisade_raw.kills,
    INSERT ON palisade_raw.commands,
    INSERT ON palisade_raw.dead_letters,
    INSERT ON palisade_raw.profiles,
    INSERT ON palisade_raw.lost,
    INSERT ON palisade_raw.activations
TO palisade_writer WITH REPLACE OPTION;

CREATE USER IF NOT EXISTS palisade_audit NOT IDENTIFIED HOST NONE;

GRANT palisade_writer TO palisade_audit;


-- reader: people: `palisade forensics`, `palisade verify`, notebooks
CREATE ROLE IF NOT EXISTS palisade_reader;

GRANT
    SELECT ON palisade.predictions,
    SELECT ON palisade.reports,
    SELECT ON palisade.answers,
    SELECT ON palisade.feedback,
    SELECT ON palisade.labelled,
    SELECT ON palisade.label_joins,
    SELECT ON palisade.verdicts,
    SELECT ON palisade.block_readings,
    SELECT ON palisade.p_values,
    SELECT ON palisade.signals,
    SELECT ON palisade.endpoint_states,
    SELECT ON palisade.journal,
    SELECT ON palisade.decisions,
    SELECT ON palisade.directives,
    SELECT ON palisade.kills,
    SELECT ON palisade.commands,
    SELECT ON palisade.dead_letters,
    SELECT ON palisade.profiles,
    SELECT ON palisade.lost,
    SELECT ON palisade.activations,
    SELECT ON palisade_raw.predictions,
    SELECT ON palisade_raw.reports,
    SELECT ON palisade_raw.answers,
    SELECT ON palisade_raw.feedback,
    SELECT ON palisade_raw.labelled,
    SELECT ON palisade_raw.label_joins,
    SELECT ON palisade_raw.verdicts,
    SELECT ON palisade_raw.block_readings,
    SELECT ON palisade_raw.p_values,
    SELECT ON palisade_raw.signals,
    SELECT ON palisade_raw.endpoint_states,
    SELECT ON palisade_raw.journal,
    SELECT ON palisade_raw.decisions,
    SELECT ON palisade_raw.directives,
    SELECT ON palisade_raw.kills,
    SELECT ON palisade_raw.commands,
    SELECT ON palisade_raw.dead_letters,
    SELECT ON palisade_raw.profiles,
    SELECT ON palisade_raw.lost,
    SELECT ON palisade_raw.activations
TO palisade_reader WITH REPLACE OPTION;

CREATE SETTINGS PROFILE OR REPLACE palisade_reader SETTINGS
    readonly = 2,
    max_execution_time = 60 MIN 1 MAX 60,
    max_memory_usage = 4000000000 MIN 1 MAX 4000000000,
    max_result_rows = 1000000 MIN 1 MAX 1000000
TO palisade_reader;

CREATE QUOTA OR REPLACE palisade_reader KEYED BY user_name FOR INTERVAL 1 hour MAX queries = 3600, execution_time = 1800 TO palisade_reader;

CREATE USER IF NOT EXISTS palisade_forensics NOT IDENTIFIED HOST NONE;

GRANT palisade_reader TO palisade_forensics;


-- owner: who sets up and upgrades: `palisade clickhouse tables`; sets how long rows stay. No running process is it
CREATE ROLE IF NOT EXISTS palisade_owner;

GRANT
    CREATE DATABASE, CREATE TABLE, SELECT, ALTER ADD COLUMN, ALTER TTL ON palisade_raw.*,
    CREATE DATABASE, CREATE VIEW, DROP VIEW, SELECT, CREATE TABLE, DROP TABLE, INSERT ON palisade.*
TO palisade_owner WITH REPLACE OPTION;

CREATE USER IF NOT EXISTS palisade_tables NOT IDENTIFIED HOST NONE;

GRANT palisade_owner TO palisade_tables;
