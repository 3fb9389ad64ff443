-- Version 3: records that lack an output are few, and are looked for at every commit.

CREATE INDEX record_incomplete ON record (id) WHERE complete = 0;
