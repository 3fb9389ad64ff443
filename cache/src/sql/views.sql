-- The documented interface of the index (docs/store.md). Made anew whenever the schema moves; a
-- change of a column raises the schema version.

DROP VIEW IF EXISTS samples;
DROP VIEW IF EXISTS metrics;
DROP VIEW IF EXISTS results;
DROP VIEW IF EXISTS attempts;
DROP VIEW IF EXISTS runs;

CREATE VIEW runs AS
SELECT
    run_id,
    command,
    status,
    platform,
    simulated,
    started_unix_ms,
    ended_unix_ms,
    ended_unix_ms - started_unix_ms AS duration_ms,
    (SELECT count(*) FROM run_node n WHERE n.run_seq = run.seq) AS nodes,
    (SELECT count(*) FROM run_node n WHERE n.run_seq = run.seq AND n.state = 'ok') AS nodes_ok,
    (SELECT count(*) FROM run_node n WHERE n.run_seq = run.seq AND n.state = 'reused') AS nodes_reused,
    (SELECT count(*) FROM run_node n WHERE n.run_seq = run.seq AND n.state = 'failed') AS nodes_failed,
    (SELECT count(*) FROM run_node n WHERE n.run_seq = run.seq AND n.state = 'invalid') AS nodes_invalid,
    (SELECT count(*) FROM run_node n WHERE n.run_seq = run.seq AND n.state = 'blocked') AS nodes_blocked,
    (SELECT count(*) FROM run_node n WHERE n.run_seq = run.seq AND n.state = 'cancelled') AS nodes_cancelled,
    doe_version,
    host,
    pid
FROM run;

CREATE VIEW attempts AS
SELECT
    r.label,
    nullif(lower(hex(r.digest)), '') AS record,
    r.kind,
    r.plan,
    r.layer,
    r.rule,
    r.run_id,
    r.attempt,
    r.execution,
    d.execution_class,
    d.execution_reason,
    d.exit_code,
    r.validity,
    d.validity_failed,
    r.criterion,
    d.criterion_checks,
    r.usable,
    r.reusable,
    d.not_reusable_because,
    r.complete,
    r.simulated,
    r.exploratory,
    d.platform,
    d.executor,
    d.doe_version,
    d.settings,
    d.tags,
    d.texts,
    nullif(lower(hex(r.spec_key)), '') AS spec_key,
    nullif(lower(hex(r.action_key)), '') AS action_key,
    nullif(lower(hex(r.judge)), '') AS judge,
    nullif(lower(hex(r.output_digest)), '') AS output_digest,
    nullif(lower(hex(d.rejudged_from)), '') AS rejudged_from,
    r.started_unix_ms,
    r.ended_unix_ms,
    r.ended_unix_ms - r.started_unix_ms AS duration_ms,
    r.recorded_unix_ms
FROM record r
JOIN record_detail d ON d.record_id = r.id;

CREATE VIEW results AS
SELECT
    s.label,
    nullif(lower(hex(r.digest)), '') AS record,
    r.label AS recorded_as,
    coalesce(r.kind, l.kind) AS kind,
    coalesce(r.plan, l.plan) AS plan,
    coalesce(r.layer, l.layer) AS layer,
    coalesce(r.rule, l.rule) AS rule,
    r.run_id,
    r.attempt,
    r.execution,
    r.validity,
    r.criterion,
    d.criterion_checks,
    r.simulated,
    r.exploratory,
    d.platform,
    d.executor,
    d.doe_version,
    d.settings,
    d.tags,
    d.texts,
    nullif(lower(hex(r.spec_key)), '') AS spec_key,
    nullif(lower(hex(r.action_key)), '') AS action_key,
    nullif(lower(hex(r.judge)), '') AS judge,
    nullif(lower(hex(r.output_digest)), '') AS output_digest,
    nullif(lower(hex(d.rejudged_from)), '') AS rejudged_from,
    r.started_unix_ms,
    r.ended_unix_ms,
    r.ended_unix_ms - r.started_unix_ms AS duration_ms,
    r.recorded_unix_ms,
    nullif(lower(hex(l.digest)), '') AS latest_record,
    l.execution AS latest_execution,
    ld.execution_reason AS latest_reason,
    l.validity AS latest_validity,
    l.criterion AS latest_criterion,
    l.recorded_unix_ms AS latest_recorded_unix_ms
FROM label_state s
LEFT JOIN record r ON r.id = s.current
LEFT JOIN record_detail d ON d.record_id = r.id
LEFT JOIN record l ON l.id = s.latest
LEFT JOIN record_detail ld ON ld.record_id = l.id;

CREATE VIEW metrics AS
SELECT
    s.label,
    r.plan,
    r.layer,
    m.name AS metric,
    m.value,
    m.unit,
    m.better,
    r.simulated,
    nullif(lower(hex(r.digest)), '') AS record,
    r.recorded_unix_ms
FROM label_state s
JOIN record r ON r.id = s.current
JOIN record_metric m ON m.record_id = r.id;

CREATE VIEW samples AS
SELECT
    s.label,
    r.plan,
    r.layer,
    q.name AS series,
    v.position,
    v.value,
    r.simulated,
    nullif(lower(hex(r.digest)), '') AS record
FROM label_state s
JOIN record r ON r.id = s.current
JOIN record_series q ON q.record_id = r.id
JOIN record_sample v ON v.series_id = q.id;
