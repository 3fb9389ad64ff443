-- Version 2: the index knows where it is in its history, and keeps every link by itself, so that
-- what stands for a key or a label can be found again when a record goes.

INSERT INTO meta (name, value) VALUES ('epoch', random()), ('generation', 0);

-- One row a link file entry: a stored record came to stand for a key and a label that it was not
-- recorded under.
CREATE TABLE link (
    record_id      INTEGER NOT NULL REFERENCES record (id) ON DELETE CASCADE,
    spec_key       BLOB NOT NULL CHECK (length(spec_key) = 32),
    label          TEXT NOT NULL,
    linked_unix_ms INTEGER NOT NULL,
    PRIMARY KEY (record_id, spec_key, label, linked_unix_ms)
) STRICT, WITHOUT ROWID;
CREATE INDEX link_by_spec ON link (spec_key);
CREATE INDEX link_by_label ON link (label);
