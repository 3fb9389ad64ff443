-- Tables of the index, version 1. Everything about records can be made again from records/;
-- people read the views, not these. Digests are 32-byte blobs, times Unix milliseconds.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row a record. What decisions need comes first, and nothing wide is in here, so that the
-- one scan of a start stays quick.
CREATE TABLE record (
    id               INTEGER PRIMARY KEY,
    digest           BLOB NOT NULL UNIQUE CHECK (length(digest) = 32),
    label            TEXT NOT NULL,
    spec_key         BLOB NOT NULL CHECK (length(spec_key) = 32),
    action_key       BLOB NOT NULL CHECK (length(action_key) = 32),
    judge            BLOB NOT NULL CHECK (length(judge) = 32),
    output_digest    BLOB NOT NULL CHECK (length(output_digest) = 32),
    simulated        INTEGER NOT NULL CHECK (simulated IN (0, 1)),
    recorded_unix_ms INTEGER NOT NULL,
    started_unix_ms  INTEGER NOT NULL,
    ended_unix_ms    INTEGER NOT NULL,
    execution        TEXT NOT NULL,
    validity         TEXT NOT NULL,
    criterion        TEXT NOT NULL,
    reusable         INTEGER NOT NULL CHECK (reusable IN (0, 1)),
    complete         INTEGER NOT NULL CHECK (complete IN (0, 1)),  -- all outputs are in the store
    kind             TEXT NOT NULL,
    plan             TEXT NOT NULL,
    layer            TEXT NOT NULL,
    rule             TEXT NOT NULL,
    run_id           TEXT NOT NULL,
    attempt          INTEGER NOT NULL,
    exploratory      INTEGER NOT NULL CHECK (exploratory IN (0, 1)),
    size_bytes       INTEGER NOT NULL,
    usable           INTEGER NOT NULL GENERATED ALWAYS AS
        (execution = 'ok' AND validity = 'valid' AND reusable AND complete) VIRTUAL
) STRICT;
CREATE INDEX record_by_action ON record (action_key, recorded_unix_ms, digest) WHERE usable;
CREATE INDEX record_by_label ON record (label, recorded_unix_ms);
CREATE INDEX record_by_time ON record (recorded_unix_ms);

CREATE TABLE record_detail (
    record_id            INTEGER PRIMARY KEY REFERENCES record (id) ON DELETE CASCADE,
    rejudged_from        BLOB,
    platform             TEXT NOT NULL,
    executor             TEXT NOT NULL,
    doe_version          TEXT NOT NULL,
    execution_class      TEXT,
    execution_reason     TEXT,
    exit_code            INTEGER,
    validity_failed      TEXT NOT NULL,  -- JSON list
    criterion_checks     TEXT NOT NULL,  -- JSON list
    not_reusable_because TEXT,
    settings             TEXT NOT NULL,  -- JSON table
    tags                 TEXT NOT NULL,  -- JSON list
    texts                TEXT NOT NULL   -- JSON table
) STRICT;

CREATE TABLE record_output (
    record_id  INTEGER NOT NULL REFERENCES record (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    digest     BLOB NOT NULL CHECK (length(digest) = 32),
    size_bytes INTEGER NOT NULL,
    doc_schema TEXT,
    PRIMARY KEY (record_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE record_log (
    record_id  INTEGER NOT NULL REFERENCES record (id) ON DELETE CASCADE,
    position   INTEGER NOT NULL,
    name       TEXT NOT NULL,
    digest     BLOB NOT NULL CHECK (length(digest) = 32),
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (record_id, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE record_metric (
    record_id INTEGER NOT NULL REFERENCES record (id) ON DELETE CASCADE,
    name      TEXT NOT NULL,
    value     REAL NOT NULL,
    unit      TEXT NOT NULL,
    better    TEXT,
    PRIMARY KEY (record_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE record_series (
    id        INTEGER PRIMARY KEY,
    record_id INTEGER NOT NULL REFERENCES record (id) ON DELETE CASCADE,
    name      TEXT NOT NULL,
    UNIQUE (record_id, name)
) STRICT;

CREATE TABLE record_sample (
    series_id INTEGER NOT NULL REFERENCES record_series (id) ON DELETE CASCADE,
    position  INTEGER NOT NULL,
    value     REAL NOT NULL,
    PRIMARY KEY (series_id, position)
) STRICT, WITHOUT ROWID;

-- Which usable record stands for a spec key. An age is the time (8 bytes, big-endian) and the
-- record's digest: the greater wins, whatever the order of arrival.
CREATE TABLE spec_link (
    spec_key  BLOB PRIMARY KEY CHECK (length(spec_key) = 32),
    record_id INTEGER NOT NULL REFERENCES record (id) ON DELETE CASCADE,
    age       BLOB NOT NULL CHECK (length(age) = 40)
) STRICT, WITHOUT ROWID;
CREATE INDEX spec_link_by_record ON spec_link (record_id);

-- What happened last under a label, and which usable record stands for it.
CREATE TABLE label_state (
    label       TEXT PRIMARY KEY,
    latest      INTEGER REFERENCES record (id) ON DELETE SET NULL,
    latest_age  BLOB NOT NULL CHECK (length(latest_age) = 40),
    current     INTEGER REFERENCES record (id) ON DELETE SET NULL,
    current_age BLOB CHECK (length(current_age) = 40)
) STRICT, WITHOUT ROWID;
CREATE INDEX label_state_by_latest ON label_state (latest);
CREATE INDEX label_state_by_current ON label_state (current);

CREATE TABLE run (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id          TEXT NOT NULL UNIQUE,
    command         TEXT NOT NULL,
    platform        TEXT NOT NULL,
    simulated       INTEGER NOT NULL CHECK (simulated IN (0, 1)),
    doe_version     TEXT NOT NULL,
    host            TEXT NOT NULL,
    pid             INTEGER NOT NULL,
    started_unix_ms INTEGER NOT NULL,
    ended_unix_ms   INTEGER,
    status          TEXT NOT NULL
) STRICT;

CREATE TABLE run_node (
    label           TEXT NOT NULL,
    run_seq         INTEGER NOT NULL REFERENCES run (seq) ON DELETE CASCADE,
    state           TEXT NOT NULL,
    reason          TEXT,
    record          BLOB CHECK (length(record) = 32),
    updated_unix_ms INTEGER NOT NULL,
    PRIMARY KEY (label, run_seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX run_node_by_run ON run_node (run_seq, state);
