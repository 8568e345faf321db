"""The schema of a journal's SQLite file, and the scripts that bring an older file up to date."""

from collections.abc import Mapping
from typing import Final

SCHEMA_VERSION: Final = 5

# 1  the first
# 2  job.traceparent
# 3  header, job.tag, job.handed_out_at; job.task_id is no longer unique, and a job in doubt may
#    have one
# 4  job.source
# 5  job.prompt_hash, job.proof, ignored
SCHEMA: Final = """
CREATE TABLE job (
    -- What identifies the job: its custom id, or its content and occurrence.
    key          TEXT NOT NULL PRIMARY KEY,
    -- The caller's name for the job.
    custom_id    TEXT,
    -- Keyed hash of the request; the request itself, which holds the prompt, is not kept.
    fingerprint  TEXT NOT NULL,
    -- What the duration depends on.
    endpoint     TEXT NOT NULL,
    model        TEXT,
    seconds      INTEGER,
    -- A value of JobState.
    state        TEXT NOT NULL,
    -- The gateway's id, from ACCEPTED on; in doubt, the id in a damaged response.
    -- Two jobs may have the same id.
    task_id      TEXT,
    -- How often it was sent.
    submissions  INTEGER NOT NULL DEFAULT 0,
    -- Why it failed or is in doubt: the name of the error, and the gateway's code.
    error        TEXT,
    code         TEXT,
    -- Points used, and whether they were refunded (0 or 1), as the gateway reports.
    points       REAL,
    refunded     INTEGER NOT NULL DEFAULT 0,
    -- Size of the file on disk.
    file_bytes   INTEGER,
    -- When each state was reached last, in Unix seconds; saving a clip again changes none.
    planned_at   REAL NOT NULL,
    submitted_at REAL,
    accepted_at  REAL,
    finished_at  REAL,
    saved_at     REAL,
    -- The W3C Trace Context of its last submission.
    traceparent  TEXT,
    -- What the caller attached to the job.
    tag          TEXT,
    -- When a wait returned its clip, in Unix seconds; NULL once a download has begun.
    handed_out_at REAL,
    -- The file, without its folder, and the line that its request was read from last: p.txt:17.
    source       TEXT,
    -- Keyed hash of the prompt; NULL if the request has none, or is of an older version.
    prompt_hash  TEXT,
    -- What settled the last doubt: person, webhook, list of tasks, or log of the key; in doubt,
    -- charge if the log or the response shows one.
    proof        TEXT
) STRICT;
CREATE INDEX job_by_state ON job (state);
CREATE INDEX job_by_task ON job (task_id);
CREATE TABLE header (
    -- Keys the fingerprints, so that equal requests differ between journals.
    salt      BLOB NOT NULL,
    -- While open, 1 in this file and 0 in its log: a copy without the log has 1.
    needs_log INTEGER NOT NULL
) STRICT;
INSERT INTO header VALUES (randomblob(32), 0);
CREATE TABLE ignored (
    -- A task at the gateway that does not belong to this journal, and is not reported.
    task_id TEXT NOT NULL PRIMARY KEY
) STRICT;
"""

ADD_TRACEPARENT: Final = """
ALTER TABLE job ADD COLUMN traceparent TEXT;
"""

# SQLite cannot drop a UNIQUE, so the table is rebuilt. The salt is empty, since the existing
# fingerprints are not keyed.
SHARE_TASK_IDS: Final = """
ALTER TABLE job RENAME TO old_job;
CREATE TABLE job (
    key TEXT NOT NULL PRIMARY KEY, custom_id TEXT, fingerprint TEXT NOT NULL,
    endpoint TEXT NOT NULL, model TEXT, seconds INTEGER, state TEXT NOT NULL, task_id TEXT,
    submissions INTEGER NOT NULL DEFAULT 0, error TEXT, code TEXT, points REAL,
    refunded INTEGER NOT NULL DEFAULT 0, file_bytes INTEGER, planned_at REAL NOT NULL,
    submitted_at REAL, accepted_at REAL, finished_at REAL, saved_at REAL, traceparent TEXT,
    tag TEXT, handed_out_at REAL
) STRICT;
INSERT INTO job SELECT *, NULL, NULL FROM old_job ORDER BY rowid;
DROP TABLE old_job;
CREATE INDEX job_by_state ON job (state);
CREATE INDEX job_by_task ON job (task_id);
CREATE TABLE header (salt BLOB NOT NULL, needs_log INTEGER NOT NULL) STRICT;
INSERT INTO header VALUES (x'', 0);
"""

ADD_SOURCE: Final = """
ALTER TABLE job ADD COLUMN source TEXT;
"""

ADD_PROMPT_HASH: Final = """
ALTER TABLE job ADD COLUMN prompt_hash TEXT;
ALTER TABLE job ADD COLUMN proof TEXT;
CREATE TABLE ignored (task_id TEXT NOT NULL PRIMARY KEY) STRICT;
"""

MIGRATIONS: Final[Mapping[int, str]] = {
    1: ADD_TRACEPARENT,
    2: SHARE_TASK_IDS,
    3: ADD_SOURCE,
    4: ADD_PROMPT_HASH,
}
"""The script from each older version to the next; a new file gets the current schema at once."""
