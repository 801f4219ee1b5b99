-- All SQL of the service, but for the schema (migrations/).
--
-- A query is `-- name: NAME`, a line that describes it, and one statement. Where the engines differ, the forms stand
-- side by side as `-- name: NAME [sqlite]` and `-- name: NAME [postgres]`. Times are microseconds since 1970. States are
-- the numbers of RunState: 1 QUEUED, 2 IN_PROGRESS, 3 REQUIRES_ACTION, 4 CANCELLING.
--
-- `$1` is the tenant, and each table that has tenants is bound to it, or to another table that is. A query that is meant
-- to see all of them says why by a line `-- across tenants: WHY`, one about no tenant's rows `-- without tenant: WHY`.
-- PostgreSQL shows each query the rows of its tenant only, or all of them to one across tenants (docs/adr/0023).
--
-- `/* FOR ... */` is in force on PostgreSQL in queries that change rows, and where a reader asks for the lock. A query
-- that waits for a lock sees of the locked table what was committed meanwhile, and nothing new of other tables: so
-- where there are others, a `..._hold` locks first. The order of locks: a thread, then its messages and runs.

-- ------------------------------------------------------------------------------------------------ assistants

-- name: assistants_insert
-- Adds an assistant, unless another one of the tenant has its configuration.
INSERT INTO assistants (tenant, id, version, create_time, config_hash) VALUES ($1, $2, 1, $3, $4)
ON CONFLICT (tenant, config_hash) WHERE config_hash IS NOT NULL DO NOTHING;

-- name: assistants_insert_version
-- Adds one version of an assistant.
INSERT INTO assistant_versions (tenant, assistant_id, version, body) VALUES ($1, $2, $3, $4);

-- name: assistants_get
-- The newest version of an assistant.
SELECT v.assistant_id, v.version, v.body
FROM assistants a
JOIN assistant_versions v ON v.tenant = a.tenant AND v.assistant_id = a.id AND v.version = a.version
WHERE a.tenant = $1 AND a.id = $2;

-- name: assistants_hold [postgres]
-- Locks an assistant.
SELECT 1 FROM assistants WHERE tenant = $1 AND id = $2 /* FOR UPDATE */;

-- name: assistants_get_version
-- A named version of an assistant.
SELECT assistant_id, version, body FROM assistant_versions WHERE tenant = $1 AND assistant_id = $2 AND version = $3;

-- name: assistants_find
-- The newest version of the assistant with a configuration.
SELECT v.assistant_id, v.version, v.body
FROM assistants a
JOIN assistant_versions v ON v.tenant = a.tenant AND v.assistant_id = a.id AND v.version = a.version
WHERE a.tenant = $1 AND a.config_hash = $2;

-- name: assistants_page
-- Assistants before a place in the list, newest first.
SELECT v.assistant_id, v.version, v.body
FROM assistants a
JOIN assistant_versions v ON v.tenant = a.tenant AND v.assistant_id = a.id AND v.version = a.version
WHERE a.tenant = $1 AND (a.create_time, a.id) < ($2, $3)
ORDER BY a.create_time DESC, a.id DESC LIMIT $4;

-- name: assistants_versions
-- Versions of an assistant below a number, newest first.
SELECT assistant_id, version, body FROM assistant_versions
WHERE tenant = $1 AND assistant_id = $2 AND version < $3
ORDER BY version DESC LIMIT $4;

-- name: assistants_advance
-- Counts the version up; the configuration is no longer what the hash says.
UPDATE assistants SET version = version + 1, config_hash = NULL WHERE tenant = $1 AND id = $2 RETURNING version;

-- name: assistants_delete
-- Removes an assistant.
DELETE FROM assistants WHERE tenant = $1 AND id = $2;

-- name: assistants_delete_versions
-- Removes all versions of an assistant.
DELETE FROM assistant_versions WHERE tenant = $1 AND assistant_id = $2;

-- --------------------------------------------------------------------------------------------------- threads

-- name: threads_insert
-- Adds a thread.
INSERT INTO threads (tenant, id, user_id, last_activity, next_sequence, version, deleted_time, create_time,
                     keep_after_create, keep_after_activity, completes, body)
VALUES ($1, $2, $3, $4, $5, 1, NULL, $6, $7, $8, $9, $10);

-- name: threads_get
-- A thread that is not deleted, with its active run.
SELECT t.id, t.version, t.last_activity, t.next_sequence, t.body,
       (SELECT r.id FROM runs r WHERE r.tenant = t.tenant AND r.thread_id = t.id AND r.active)
FROM threads t
WHERE t.tenant = $1 AND t.id = $2 AND t.deleted_time IS NULL;

-- name: threads_outline
-- What columns tell of a thread that is not deleted, with its active run.
SELECT t.version, t.user_id, t.create_time, t.last_activity, t.keep_after_create, t.keep_after_activity, t.completes,
       (SELECT r.id FROM runs r WHERE r.tenant = t.tenant AND r.thread_id = t.id AND r.active)
FROM threads t
WHERE t.tenant = $1 AND t.id = $2 AND t.deleted_time IS NULL;

-- name: threads_hold [postgres]
-- Locks a thread, also a deleted one.
SELECT 1 FROM threads WHERE tenant = $1 AND id = $2 /* FOR UPDATE */;

-- name: threads_page
-- Threads of a tenant with activity since a time and before a place in the list, latest first.
SELECT t.id, t.version, t.last_activity, t.next_sequence, t.body,
       (SELECT r.id FROM runs r WHERE r.tenant = t.tenant AND r.thread_id = t.id AND r.active)
FROM threads t
WHERE t.tenant = $1 AND t.deleted_time IS NULL
  AND t.last_activity >= $2 AND (t.last_activity, t.id) < ($3, $4)
ORDER BY t.last_activity DESC, t.id DESC LIMIT $5;

-- name: threads_page_of_user
-- The same of one user.
SELECT t.id, t.version, t.last_activity, t.next_sequence, t.body,
       (SELECT r.id FROM runs r WHERE r.tenant = t.tenant AND r.thread_id = t.id AND r.active)
FROM threads t
WHERE t.tenant = $1 AND t.deleted_time IS NULL
  AND t.last_activity >= $2 AND (t.last_activity, t.id) < ($3, $4)
  AND t.user_id = $6
ORDER BY t.last_activity DESC, t.id DESC LIMIT $5;

-- name: threads_page_with_metadata [sqlite]
-- The same of one user or of all (''), of threads that have all $8 pairs of a JSON array of [key, value].
SELECT t.id, t.version, t.last_activity, t.next_sequence, t.body,
       (SELECT r.id FROM runs r WHERE r.tenant = t.tenant AND r.thread_id = t.id AND r.active)
FROM (
    SELECT m.thread_id AS id
    FROM json_each($7) AS wanted
    CROSS JOIN thread_metadata m ON m.tenant = $1 AND m.key = wanted.value ->> 0 AND m.value = wanted.value ->> 1
    GROUP BY m.thread_id HAVING count(*) = $8
) AS found
CROSS JOIN threads t ON t.tenant = $1 AND t.id = found.id
WHERE t.deleted_time IS NULL
  AND t.last_activity >= $2 AND (t.last_activity, t.id) < ($3, $4)
  AND ($6 = '' OR t.user_id = $6)
ORDER BY t.last_activity DESC, t.id DESC LIMIT $5;

-- name: threads_page_with_metadata [postgres]
-- The same. An index is used below a policy only for what leaks nothing, as `->>` might: so that comes before, and
-- OFFSET 0 keeps it there.
SELECT t.id, t.version, t.last_activity, t.next_sequence, t.body,
       (SELECT r.id FROM runs r WHERE r.tenant = t.tenant AND r.thread_id = t.id AND r.active)
FROM (
    SELECT m.thread_id AS id
    FROM (SELECT pair ->> 0 AS key, pair ->> 1 AS value
          FROM jsonb_array_elements($7::text::jsonb) AS given (pair) OFFSET 0) AS wanted
    JOIN thread_metadata m ON m.tenant = $1 AND m.key = wanted.key AND m.value = wanted.value
    GROUP BY m.thread_id HAVING count(*) = $8
) AS found
JOIN threads t ON t.tenant = $1 AND t.id = found.id
WHERE t.deleted_time IS NULL
  AND t.last_activity >= $2 AND (t.last_activity, t.id) < ($3, $4)
  AND ($6 = '' OR t.user_id = $6)
ORDER BY t.last_activity DESC, t.id DESC LIMIT $5;

-- name: threads_replace
-- Stores the thread's own fields.
UPDATE threads
SET keep_after_create = $3, keep_after_activity = $4, completes = $5, body = $6, version = version + 1
WHERE tenant = $1 AND id = $2 AND deleted_time IS NULL
RETURNING version;

-- name: threads_touch
-- Notes activity, never an older one. Locks the thread in any case: others rely on it.
UPDATE threads SET last_activity = CASE WHEN last_activity < $3 THEN $3 ELSE last_activity END
WHERE tenant = $1 AND id = $2 AND deleted_time IS NULL;

-- name: threads_next_sequence
-- The sequence that the next message of a thread gets.
SELECT next_sequence FROM threads WHERE tenant = $1 AND id = $2 AND deleted_time IS NULL /* FOR UPDATE */;

-- name: threads_take_sequences
-- Takes the next $3 sequences; returns the one after them. Notes activity, never an older one.
UPDATE threads
SET next_sequence = next_sequence + $3, last_activity = CASE WHEN last_activity < $4 THEN $4 ELSE last_activity END
WHERE tenant = $1 AND id = $2 AND deleted_time IS NULL
RETURNING next_sequence;

-- name: threads_revise
-- Counts a change of the messages that a thread sees, other than a new one. Locks the thread.
UPDATE threads SET revision = revision + 1 WHERE tenant = $1 AND id = $2;

-- name: threads_bury
-- Leaves a tombstone. It tells whose the thread was as long as forks show messages of it.
UPDATE threads
SET deleted_time = $3, body = $4, keep_after_create = NULL, keep_after_activity = NULL, completes = NULL,
    version = version + 1,
    user_id = CASE WHEN EXISTS (SELECT 1 FROM thread_segments s
                                WHERE s.tenant = $1 AND s.log_id = $2 AND s.thread_id <> $2) THEN user_id ELSE '' END
WHERE tenant = $1 AND id = $2 AND deleted_time IS NULL;

-- name: threads_disown
-- A tombstone forgets whose the thread was, unless a thread shows messages of it.
UPDATE threads SET user_id = ''
WHERE tenant = $1 AND id = $2 AND deleted_time IS NOT NULL
  AND NOT EXISTS (SELECT 1 FROM thread_segments s WHERE s.tenant = $1 AND s.log_id = $2);

-- name: threads_of_user
-- The threads of a user behind an id, in the order of ids, that were created until a time; tombstones included.
SELECT id, deleted_time IS NOT NULL FROM threads
WHERE tenant = $1 AND user_id = $2 AND user_id <> '' AND id > $3 AND create_time <= $4
ORDER BY id LIMIT $5;

-- name: threads_tenants
-- The tenants behind a name that have threads, in order. Each costs one look into the index.
-- across tenants: the sweeper looks after all.
WITH RECURSIVE named (tenant) AS (
    SELECT (SELECT t.tenant FROM threads t WHERE t.tenant > $1 AND t.deleted_time IS NULL ORDER BY t.tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT t.tenant FROM threads t
            WHERE t.tenant > named.tenant AND t.deleted_time IS NULL ORDER BY t.tenant LIMIT 1)
    FROM named WHERE named.tenant IS NOT NULL
)
SELECT tenant FROM named WHERE tenant IS NOT NULL LIMIT $2;

-- The time of a thread is not over while it has an active run. Where one is in line, another one is active.

-- name: threads_outlived_by_creation
-- Threads that were created until a time: $2 if they do not say how long they are kept after that, $3 if they do.
SELECT t.id FROM threads t
WHERE t.tenant = $1 AND t.deleted_time IS NULL
  AND t.create_time <= $2 AND (t.keep_after_create IS NULL OR t.create_time <= $3)
  AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.tenant = $1 AND r.thread_id = t.id AND r.active)
ORDER BY t.create_time LIMIT $4;

-- name: threads_outlived_by_activity
-- Threads without activity since a time that do not say how long they are kept after it.
SELECT t.id FROM threads t
WHERE t.tenant = $1 AND t.deleted_time IS NULL AND t.last_activity <= $2 AND t.keep_after_activity IS NULL
  AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.tenant = $1 AND r.thread_id = t.id AND r.active)
ORDER BY t.last_activity LIMIT $3;

-- name: threads_completed_by_default
-- Threads that had their last run and do not say whether they go with it. Where this is the rule, few runs are left.
SELECT DISTINCT t.id
FROM runs done
JOIN threads t ON t.tenant = done.tenant AND t.id = done.thread_id
WHERE done.tenant = $1 AND NOT done.active AND t.deleted_time IS NULL AND t.completes IS NULL
  AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.tenant = $1 AND r.thread_id = t.id AND r.active)
LIMIT $2;

-- name: threads_expired
-- Threads whose own time is over at $1, and those that go with their last run and have had it, first come the oldest: at
-- most $2 of either.
-- across tenants: the sweeper looks after all, and few threads say anything of this.
SELECT tenant, id FROM (
    SELECT t.tenant, t.id FROM threads t
    WHERE t.deleted_time IS NULL AND t.own_end IS NOT NULL AND t.own_end <= $1
      AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.tenant = t.tenant AND r.thread_id = t.id AND r.active)
    ORDER BY t.own_end LIMIT $2
) AS outlived
UNION
SELECT tenant, id FROM (
    SELECT t.tenant, t.id FROM threads t
    WHERE t.deleted_time IS NULL AND t.completes AND t.create_time <= $1
      AND EXISTS (SELECT 1 FROM runs r WHERE r.tenant = t.tenant AND r.thread_id = t.id)
      AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.tenant = t.tenant AND r.thread_id = t.id AND r.active)
    ORDER BY t.create_time LIMIT $2
) AS completed;

-- name: threads_clear_tombstones
-- Removes tombstones of threads that were deleted until $1 and of which no thread shows messages.
-- across tenants: the sweeper looks after all.
DELETE FROM threads
WHERE (tenant, id) IN (SELECT t.tenant, t.id FROM threads t
                       WHERE t.deleted_time <= $1
                         AND NOT EXISTS (SELECT 1 FROM thread_segments s
                                         WHERE s.tenant = t.tenant AND s.log_id = t.id)
                       ORDER BY t.deleted_time LIMIT $2);

-- name: thread_metadata_insert
-- Makes a thread findable by a pair.
INSERT INTO thread_metadata (tenant, thread_id, key, value) VALUES ($1, $2, $3, $4);

-- name: thread_metadata_delete
-- Removes all pairs of a thread.
DELETE FROM thread_metadata WHERE tenant = $1 AND thread_id = $2;

-- -------------------------------------------------------------------------------------------------- segments
-- A thread sees, of each of its segments, the messages of one log from a sequence up to another. Its own log has its
-- id and an open end. All segments of one log start alike, so what is left of a log is what its longest segment covers.

-- name: segments_insert
-- Gives a thread its own log.
INSERT INTO thread_segments (tenant, thread_id, log_id, from_sequence, upto_sequence) VALUES ($1, $2, $2, $3, $4);

-- name: segments_fork
-- Gives thread $3 the segments of thread $2, up to sequence $4.
INSERT INTO thread_segments (tenant, thread_id, log_id, from_sequence, upto_sequence)
SELECT tenant, $3, log_id, from_sequence, CASE WHEN upto_sequence < $4 THEN upto_sequence ELSE $4 END
FROM thread_segments
WHERE tenant = $1 AND thread_id = $2 AND from_sequence <= $4;

-- name: segments_delete
-- Removes the segments of a thread; returns the logs they showed.
DELETE FROM thread_segments WHERE tenant = $1 AND thread_id = $2 RETURNING log_id;

-- name: segments_of_log
-- The threads that show a log, the latest first.
SELECT thread_id FROM thread_segments WHERE tenant = $1 AND log_id = $2 ORDER BY thread_id DESC;

-- name: segments_delete_of_log
-- No thread shows a log any more.
DELETE FROM thread_segments WHERE tenant = $1 AND log_id = $2;

-- --------------------------------------------------------------------------------------------------- messages

-- name: messages_insert
-- Adds a message to a log.
INSERT INTO messages (tenant, log_id, sequence, id, run_id, version, body) VALUES ($1, $2, $3, $4, $5, 1, $6);

-- name: messages_get
-- A message as a thread sees it, with its log and whether the thread overrides it.
SELECT m.id, m.sequence, COALESCE(o.version, m.version), COALESCE(o.body, m.body), m.log_id, o.version IS NOT NULL
FROM messages m
JOIN thread_segments s ON s.tenant = m.tenant AND s.thread_id = $2 AND s.log_id = m.log_id
    AND s.from_sequence <= m.sequence AND s.upto_sequence >= m.sequence
LEFT JOIN message_overrides o ON o.tenant = m.tenant AND o.thread_id = s.thread_id AND o.sequence = m.sequence
WHERE m.tenant = $1 AND m.id = $3 AND (o.deleted IS NULL OR NOT o.deleted) /* FOR UPDATE OF m */;

-- name: messages_ascending [sqlite]
-- Messages that a thread sees between two sequences, oldest first. One bound each way, so that the index finds both.
SELECT m.id, m.sequence, COALESCE(o.version, m.version), COALESCE(o.body, m.body)
FROM thread_segments s
JOIN messages m ON m.tenant = s.tenant AND m.log_id = s.log_id
    AND m.sequence > CASE WHEN s.from_sequence > $3 THEN s.from_sequence - 1 ELSE $3 END
    AND m.sequence < CASE WHEN s.upto_sequence < $4 THEN s.upto_sequence + 1 ELSE $4 END
LEFT JOIN message_overrides o ON o.tenant = s.tenant AND o.thread_id = s.thread_id AND o.sequence = m.sequence
WHERE s.tenant = $1 AND s.thread_id = $2 AND s.upto_sequence > $3 AND s.from_sequence < $4
  AND (o.deleted IS NULL OR NOT o.deleted)
ORDER BY s.from_sequence, m.sequence LIMIT $5;

-- name: messages_ascending [postgres]
-- The same, of each segment no more than are wanted.
SELECT seen.id, seen.sequence, seen.version, seen.body
FROM thread_segments s
CROSS JOIN LATERAL (
    SELECT m.id, m.sequence, COALESCE(o.version, m.version) AS version, COALESCE(o.body, m.body) AS body
    FROM messages m
    LEFT JOIN message_overrides o ON o.tenant = s.tenant AND o.thread_id = s.thread_id AND o.sequence = m.sequence
    WHERE m.tenant = s.tenant AND m.log_id = s.log_id
      AND m.sequence > CASE WHEN s.from_sequence > $3 THEN s.from_sequence - 1 ELSE $3 END
      AND m.sequence < CASE WHEN s.upto_sequence < $4 THEN s.upto_sequence + 1 ELSE $4 END
      AND (o.deleted IS NULL OR NOT o.deleted)
    ORDER BY m.sequence LIMIT $5
) AS seen
WHERE s.tenant = $1 AND s.thread_id = $2 AND s.upto_sequence > $3 AND s.from_sequence < $4
ORDER BY seen.sequence LIMIT $5;

-- name: messages_descending [sqlite]
-- Messages that a thread sees between two sequences, newest first.
SELECT m.id, m.sequence, COALESCE(o.version, m.version), COALESCE(o.body, m.body)
FROM thread_segments s
JOIN messages m ON m.tenant = s.tenant AND m.log_id = s.log_id
    AND m.sequence > CASE WHEN s.from_sequence > $3 THEN s.from_sequence - 1 ELSE $3 END
    AND m.sequence < CASE WHEN s.upto_sequence < $4 THEN s.upto_sequence + 1 ELSE $4 END
LEFT JOIN message_overrides o ON o.tenant = s.tenant AND o.thread_id = s.thread_id AND o.sequence = m.sequence
WHERE s.tenant = $1 AND s.thread_id = $2 AND s.upto_sequence > $3 AND s.from_sequence < $4
  AND (o.deleted IS NULL OR NOT o.deleted)
ORDER BY s.from_sequence DESC, m.sequence DESC LIMIT $5;

-- name: messages_descending [postgres]
-- The same, of each segment no more than are wanted.
SELECT seen.id, seen.sequence, seen.version, seen.body
FROM thread_segments s
CROSS JOIN LATERAL (
    SELECT m.id, m.sequence, COALESCE(o.version, m.version) AS version, COALESCE(o.body, m.body) AS body
    FROM messages m
    LEFT JOIN message_overrides o ON o.tenant = s.tenant AND o.thread_id = s.thread_id AND o.sequence = m.sequence
    WHERE m.tenant = s.tenant AND m.log_id = s.log_id
      AND m.sequence > CASE WHEN s.from_sequence > $3 THEN s.from_sequence - 1 ELSE $3 END
      AND m.sequence < CASE WHEN s.upto_sequence < $4 THEN s.upto_sequence + 1 ELSE $4 END
      AND (o.deleted IS NULL OR NOT o.deleted)
    ORDER BY m.sequence DESC LIMIT $5
) AS seen
WHERE s.tenant = $1 AND s.thread_id = $2 AND s.upto_sequence > $3 AND s.from_sequence < $4
ORDER BY seen.sequence DESC LIMIT $5;

-- name: messages_newest [sqlite]
-- The revision of a thread with its newest messages behind a sequence, newest first: one row without a message where
-- there is none.
SELECT t.revision, seen.id, seen.sequence, seen.version, seen.body
FROM threads t
LEFT JOIN (
    SELECT m.id, m.sequence, COALESCE(o.version, m.version) AS version, COALESCE(o.body, m.body) AS body
    FROM thread_segments s
    JOIN messages m ON m.tenant = s.tenant AND m.log_id = s.log_id
        AND m.sequence > CASE WHEN s.from_sequence > $3 THEN s.from_sequence - 1 ELSE $3 END
        AND m.sequence <= s.upto_sequence
    LEFT JOIN message_overrides o ON o.tenant = s.tenant AND o.thread_id = s.thread_id AND o.sequence = m.sequence
    WHERE s.tenant = $1 AND s.thread_id = $2 AND s.upto_sequence > $3
      AND (o.deleted IS NULL OR NOT o.deleted)
    ORDER BY s.from_sequence DESC, m.sequence DESC LIMIT $4
) AS seen ON TRUE
WHERE t.tenant = $1 AND t.id = $2
ORDER BY seen.sequence DESC;

-- name: messages_newest [postgres]
-- The same, of each segment no more than are wanted.
SELECT t.revision, seen.id, seen.sequence, seen.version, seen.body
FROM threads t
LEFT JOIN (
    SELECT found.id, found.sequence, found.version, found.body
    FROM thread_segments s
    CROSS JOIN LATERAL (
        SELECT m.id, m.sequence, COALESCE(o.version, m.version) AS version, COALESCE(o.body, m.body) AS body
        FROM messages m
        LEFT JOIN message_overrides o ON o.tenant = s.tenant AND o.thread_id = s.thread_id AND o.sequence = m.sequence
        WHERE m.tenant = s.tenant AND m.log_id = s.log_id
          AND m.sequence > CASE WHEN s.from_sequence > $3 THEN s.from_sequence - 1 ELSE $3 END
          AND m.sequence <= s.upto_sequence
          AND (o.deleted IS NULL OR NOT o.deleted)
        ORDER BY m.sequence DESC LIMIT $4
    ) AS found
    WHERE s.tenant = $1 AND s.thread_id = $2 AND s.upto_sequence > $3
    ORDER BY found.sequence DESC LIMIT $4
) AS seen ON TRUE
WHERE t.tenant = $1 AND t.id = $2
ORDER BY seen.sequence DESC;

-- name: messages_of_run
-- Messages that a run wrote and a thread sees between two sequences, oldest first. They are few.
SELECT m.id, m.sequence, COALESCE(o.version, m.version), COALESCE(o.body, m.body)
FROM messages m
JOIN thread_segments s ON s.tenant = m.tenant AND s.thread_id = $2 AND s.log_id = m.log_id
    AND s.from_sequence <= m.sequence AND s.upto_sequence >= m.sequence
LEFT JOIN message_overrides o ON o.tenant = m.tenant AND o.thread_id = s.thread_id AND o.sequence = m.sequence
WHERE m.tenant = $1 AND m.run_id = $5 AND m.run_id <> '' AND m.sequence > $3 AND m.sequence < $4
  AND (o.deleted IS NULL OR NOT o.deleted)
ORDER BY m.sequence;

-- name: messages_seen_elsewhere
-- Whether a thread other than $3 sees message $4 of log $2.
SELECT 1
FROM thread_segments s
WHERE s.tenant = $1 AND s.log_id = $2 AND s.thread_id <> $3 AND s.from_sequence <= $4 AND s.upto_sequence >= $4
  AND NOT EXISTS (SELECT 1 FROM message_overrides o
                  WHERE o.tenant = $1 AND o.thread_id = s.thread_id AND o.sequence = $4 AND o.deleted)
LIMIT 1;

-- name: messages_replace
-- Changes a message in its log.
UPDATE messages SET version = $4, body = $5 WHERE tenant = $1 AND log_id = $2 AND sequence = $3;

-- name: messages_delete
-- Removes a message from its log.
DELETE FROM messages WHERE tenant = $1 AND log_id = $2 AND sequence = $3;

-- name: messages_delete_of_log
-- Removes all messages of a log.
DELETE FROM messages WHERE tenant = $1 AND log_id = $2;

-- name: messages_delete_unreferred
-- Removes the messages of a log that no thread's segment covers.
DELETE FROM messages
WHERE tenant = $1 AND log_id = $2 AND sequence > (
    SELECT COALESCE(max(upto_sequence), 0) FROM thread_segments WHERE tenant = $1 AND log_id = $2
);

-- name: messages_delete_hidden
-- Removes the messages of a log that every thread they are shared by has deleted.
DELETE FROM messages
WHERE tenant = $1 AND log_id = $2
  AND sequence IN (
      SELECT o.sequence FROM message_overrides o
      WHERE o.tenant = $1 AND o.deleted
        AND o.thread_id IN (SELECT s.thread_id FROM thread_segments s WHERE s.tenant = $1 AND s.log_id = $2)
  )
  AND NOT EXISTS (
      SELECT 1 FROM thread_segments s
      WHERE s.tenant = $1 AND s.log_id = $2
        AND s.from_sequence <= messages.sequence AND s.upto_sequence >= messages.sequence
        AND NOT EXISTS (
            SELECT 1 FROM message_overrides o
            WHERE o.tenant = $1 AND o.thread_id = s.thread_id AND o.sequence = messages.sequence AND o.deleted
        )
  );

-- name: overrides_put
-- What one thread sees in place of a message that others see, too.
INSERT INTO message_overrides (tenant, thread_id, sequence, deleted, version, body) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (tenant, thread_id, sequence)
DO UPDATE SET deleted = excluded.deleted, version = excluded.version, body = excluded.body;

-- name: overrides_fork
-- Gives thread $3 the overrides of thread $2, up to sequence $4.
INSERT INTO message_overrides (tenant, thread_id, sequence, deleted, version, body)
SELECT tenant, $3, sequence, deleted, version, body
FROM message_overrides
WHERE tenant = $1 AND thread_id = $2 AND sequence <= $4;

-- name: overrides_of_thread
-- The overrides of a thread that have a body, each with the id of its message.
SELECT o.sequence, m.id, o.body
FROM message_overrides o
JOIN thread_segments s ON s.tenant = o.tenant AND s.thread_id = o.thread_id
    AND s.from_sequence <= o.sequence AND s.upto_sequence >= o.sequence
JOIN messages m ON m.tenant = s.tenant AND m.log_id = s.log_id AND m.sequence = o.sequence
WHERE o.tenant = $1 AND o.thread_id = $2 AND NOT o.deleted;

-- name: overrides_delete
-- Removes a thread's override of one message.
DELETE FROM message_overrides WHERE tenant = $1 AND thread_id = $2 AND sequence = $3;

-- name: overrides_delete_all
-- Removes all overrides of a thread.
DELETE FROM message_overrides WHERE tenant = $1 AND thread_id = $2;

-- name: overrides_delete_of_log
-- Removes what threads see in place of messages of a log.
DELETE FROM message_overrides
WHERE tenant = $1 AND thread_id IN (SELECT s.thread_id FROM thread_segments s WHERE s.tenant = $1 AND s.log_id = $2)
  AND EXISTS (SELECT 1 FROM thread_segments s
              WHERE s.tenant = $1 AND s.log_id = $2 AND s.thread_id = message_overrides.thread_id
                AND s.from_sequence <= message_overrides.sequence AND s.upto_sequence >= message_overrides.sequence);

-- ------------------------------------------------------------------------------------------------------- runs

-- name: runs_insert
-- Adds a run, unless it would be the second active one of its thread.
INSERT INTO runs (tenant, id, thread_id, assistant_id, state, active, create_time, expire_time, attempt,
                  lease_owner, lease_expire_time, line, queue_time, start_time, version, body)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 1, $15)
ON CONFLICT (tenant, thread_id) WHERE active DO NOTHING;

-- name: runs_active
-- The active run of a thread.
SELECT id, version, body FROM runs WHERE tenant = $1 AND thread_id = $2 AND active /* FOR UPDATE */;

-- name: runs_get
-- A run.
SELECT id, version, body FROM runs WHERE tenant = $1 AND id = $2 /* FOR UPDATE */;

-- name: runs_lock
-- Notes activity on a thread, and takes its next $4 sequences; returns the one after them, and the version of one of its
-- runs. Locks the thread in any case, and the run behind it.
UPDATE threads
SET last_activity = CASE WHEN last_activity < $3 THEN $3 ELSE last_activity END, next_sequence = next_sequence + $4
WHERE tenant = $1 AND id = $2 AND deleted_time IS NULL
RETURNING next_sequence, (SELECT r.version FROM runs r WHERE r.tenant = $1 AND r.id = $5 /* FOR UPDATE */);

-- name: runs_thread
-- The thread of a run.
SELECT thread_id FROM runs WHERE tenant = $1 AND id = $2;

-- name: runs_outlines
-- What columns tell of the runs on a thread.
SELECT r.id, r.assistant_id, r.state, t.user_id
FROM runs r
JOIN threads t ON t.tenant = r.tenant AND t.id = r.thread_id
WHERE r.tenant = $1 AND r.thread_id = $2;

-- name: runs_page
-- Runs of a tenant in the states of a bit mask, newest first.
SELECT id, version, body FROM runs
WHERE tenant = $1 AND (create_time, id) < ($2, $3) AND (1 << state) & $4 <> 0
ORDER BY create_time DESC, id DESC LIMIT $5;

-- name: runs_page_of_thread
-- The same on one thread, by one assistant or by all ('').
SELECT id, version, body FROM runs
WHERE tenant = $1 AND (create_time, id) < ($2, $3) AND (1 << state) & $4 <> 0
  AND thread_id = $6 AND ($7 = '' OR assistant_id = $7)
ORDER BY create_time DESC, id DESC LIMIT $5;

-- name: runs_page_of_assistant
-- The same by one assistant.
SELECT id, version, body FROM runs
WHERE tenant = $1 AND (create_time, id) < ($2, $3) AND (1 << state) & $4 <> 0
  AND assistant_id = $6
ORDER BY create_time DESC, id DESC LIMIT $5;

-- name: runs_replace
-- Stores a run if its attempt is still $3. An owned run ($8) keeps its lease unless given another; others have none.
-- A run in line stays there until it has ended, a parked one while it is QUEUED. Returns the new version, and whether
-- there are runs in line on the thread: all of them, where it was locked before.
UPDATE runs
SET state = $4, active = $5 AND line IS NULL, line = CASE WHEN $5 THEN line END, expire_time = $6, attempt = $7,
    lease_owner = CASE WHEN $8 THEN COALESCE($9, lease_owner) END,
    lease_expire_time = CASE WHEN $8 THEN COALESCE($10, lease_expire_time, 0) END,
    wake_time = CASE WHEN $4 = 1 THEN COALESCE($11, wake_time) ELSE 0 END,
    version = version + 1, body = $12
WHERE tenant = $1 AND id = $2 AND attempt = $3
RETURNING version,
          EXISTS (SELECT 1 FROM runs n
                  WHERE n.tenant = $1 AND n.thread_id = runs.thread_id AND n.line IS NOT NULL AND n.id <> $2);

-- name: runs_queue
-- What there is to claim: runs whose lease has run out at $3, parked runs whose time has come, and the tenants whose runs
-- wait, from $1 on and round to it, at most $2. Each with how many there are, counted up to $2. A tenant costs one look
-- into the index, however many runs it has; a UNION knows when it has come round.
-- across tenants: a worker serves all of them, in turns.
SELECT 'abandoned' AS kind, '' AS tenant, count(*) AS number
FROM (SELECT 1 FROM runs WHERE lease_expire_time <= $3 LIMIT $2) AS abandoned
UNION ALL
SELECT 'parked', '', count(*)
FROM (SELECT 1 FROM runs WHERE wake_time > 0 AND wake_time <= $3 LIMIT $2) AS parked
UNION ALL
SELECT 'waiting', turn.tenant,
       (SELECT count(*) FROM (SELECT 1 FROM runs r WHERE r.tenant = turn.tenant
                              AND r.state = 1 AND r.active AND r.wake_time = 0 LIMIT $2) AS counted)
FROM (
    WITH RECURSIVE turns (tenant) AS (
        SELECT COALESCE((SELECT r.tenant FROM runs r WHERE r.tenant >= $1
                         AND r.state = 1 AND r.active AND r.wake_time = 0 ORDER BY r.tenant, r.queue_time LIMIT 1),
                        (SELECT r.tenant FROM runs r
                         WHERE r.state = 1 AND r.active AND r.wake_time = 0 ORDER BY r.tenant, r.queue_time LIMIT 1))
        UNION
        SELECT COALESCE((SELECT r.tenant FROM runs r WHERE r.tenant > turns.tenant
                         AND r.state = 1 AND r.active AND r.wake_time = 0 ORDER BY r.tenant, r.queue_time LIMIT 1),
                        (SELECT r.tenant FROM runs r
                         WHERE r.state = 1 AND r.active AND r.wake_time = 0 ORDER BY r.tenant, r.queue_time LIMIT 1))
        FROM turns
    )
    SELECT tenant FROM turns WHERE tenant IS NOT NULL LIMIT $2
) AS turn;

-- name: runs_first [sqlite]
-- The first runs that wait of each tenant in a JSON array of [tenant, how many], at most $2 of each.
-- across tenants: a worker claims what is waiting of several at once.
SELECT r.tenant, r.id, r.version, r.body
FROM json_each($1) AS wanted
CROSS JOIN runs r ON r.rowid IN (SELECT f.rowid FROM runs f WHERE f.tenant = wanted.value ->> 0
                                 AND f.state = 1 AND f.active AND f.wake_time = 0
                                 ORDER BY f.queue_time, f.id LIMIT $2)
ORDER BY wanted.key, r.queue_time, r.id;

-- name: runs_first [postgres]
-- The same; here they are as many as are wanted.
-- across tenants: a worker claims what is waiting of several at once.
SELECT first.tenant, first.id, first.version, first.body
FROM jsonb_array_elements($1::text::jsonb) WITH ORDINALITY AS wanted (pair, place)
CROSS JOIN LATERAL (SELECT r.* FROM runs r WHERE r.tenant = wanted.pair ->> 0
                    AND r.state = 1 AND r.active AND r.wake_time = 0
                    ORDER BY r.queue_time, r.id LIMIT LEAST((wanted.pair ->> 1)::bigint, $2)
                    /* FOR UPDATE SKIP LOCKED */) AS first
ORDER BY wanted.place, first.queue_time, first.id;

-- name: runs_abandoned
-- Runs whose lease has run out, oldest first.
-- across tenants: whoever finds a lease that ran out takes over, whosever run it is.
SELECT tenant, id, version, body FROM runs WHERE lease_expire_time <= $1
ORDER BY create_time, id LIMIT $2 /* FOR UPDATE SKIP LOCKED */;

-- name: runs_claim
-- Gives a locked run to an owner.
-- across tenants: the runs of one claim are of several, and each row names its own.
UPDATE runs
SET state = $3, attempt = $4, lease_owner = $5, lease_expire_time = $6, start_time = COALESCE(start_time, $7),
    version = version + 1, body = $8
WHERE tenant = $1 AND id = $2;

-- name: runs_wake
-- Lets parked runs be claimed whose time has come, at most $2.
-- across tenants: time passes for all of them.
UPDATE runs SET wake_time = 0
WHERE (tenant, id) IN (SELECT tenant, id FROM runs WHERE wake_time > 0 AND wake_time <= $1
                       ORDER BY wake_time LIMIT $2 /* FOR UPDATE SKIP LOCKED */);

-- name: runs_backlog
-- Of a tenant, counted up to $3: runs that are QUEUED, those that are claimed before one with the time $2, and those that
-- were started after $4, with the first of these times, at most $5.
SELECT
    (SELECT count(*) FROM (SELECT 1 FROM runs WHERE tenant = $1 AND state = 1 AND active AND wake_time = 0
                           LIMIT $3) AS waiting)
    + (SELECT count(*) FROM (SELECT 1 FROM runs WHERE tenant = $1 AND state = 1 AND (NOT active OR wake_time > 0)
                             LIMIT $3) AS held),
    (SELECT count(*) FROM (SELECT 1 FROM runs WHERE tenant = $1 AND state = 1 AND active AND wake_time = 0
                           AND queue_time <= $2 LIMIT $3) AS ahead),
    count(*), min(start_time)
FROM (SELECT start_time FROM runs WHERE tenant = $1 AND start_time > $4
      ORDER BY start_time DESC LIMIT $5) AS started;

-- name: runs_count_waiting
-- How many runs wait for a worker, counted up to $1, and when the first of them was created that none has begun.
-- across tenants: it is one queue for all of them.
SELECT count(*), min(CASE WHEN start_time IS NULL THEN create_time END)
FROM (SELECT r.start_time, r.create_time FROM runs r WHERE r.state = 1 AND r.active AND r.wake_time = 0
      LIMIT $1) AS waiting;

-- name: runs_renew [sqlite]
-- Renews the leases of one owner on the runs in a JSON array of ids. They are found among all that have a lease.
-- across tenants: a worker renews all its leases at once; it can name only runs that it has claimed.
UPDATE runs SET lease_expire_time = $2
WHERE lease_expire_time >= 0 AND lease_owner = $1 AND id IN (SELECT value FROM json_each($3)) RETURNING id;

-- name: runs_renew [postgres]
-- The same.
-- across tenants: a worker renews all its leases at once; it can name only runs that it has claimed.
UPDATE runs SET lease_expire_time = $2
WHERE lease_expire_time >= 0 AND lease_owner = $1
  AND id = ANY (SELECT jsonb_array_elements_text($3::text::jsonb)) RETURNING id;

-- name: runs_stopping
-- Runs of one owner that were asked to stop.
-- across tenants: a worker asks for all runs that it has claimed.
SELECT id FROM runs WHERE lease_expire_time >= 0 AND lease_owner = $1 AND state = 4;

-- name: runs_versions [sqlite]
-- The versions of those runs in a JSON array of [tenant, id] that exist.
-- across tenants: a replica compares all runs that are watched there; each is named with its tenant.
SELECT r.tenant, r.id, r.version
FROM json_each($1) AS wanted
CROSS JOIN runs r ON r.tenant = wanted.value ->> 0 AND r.id = wanted.value ->> 1;

-- name: runs_versions [postgres]
-- The same. Why OFFSET 0: see threads_page_with_metadata.
-- across tenants: a replica compares all runs that are watched there; each is named with its tenant.
SELECT r.tenant, r.id, r.version
FROM (SELECT pair ->> 0 AS tenant, pair ->> 1 AS id
      FROM jsonb_array_elements($1::text::jsonb) AS given (pair) OFFSET 0) AS wanted
JOIN runs r ON r.tenant = wanted.tenant AND r.id = wanted.id;

-- name: runs_in_line
-- Runs that wait behind the active one of a thread, up to a place, first to last.
SELECT id, version, body FROM runs
WHERE tenant = $1 AND thread_id = $2 AND line IS NOT NULL AND line <= $3
ORDER BY line, id /* FOR UPDATE */;

-- name: runs_promote
-- Makes the first run in line the active one, where there is none.
UPDATE runs SET active = TRUE, line = NULL, version = version + 1
WHERE tenant = $1
  AND id = (SELECT n.id FROM runs n WHERE n.tenant = $1 AND n.thread_id = $2 AND n.line IS NOT NULL
            ORDER BY n.line, n.id LIMIT 1)
  AND NOT EXISTS (SELECT 1 FROM runs a WHERE a.tenant = $1 AND a.thread_id = $2 AND a.active)
RETURNING id, version, body;

-- name: runs_ids_of_thread
-- The ids of all runs on a thread.
SELECT id FROM runs WHERE tenant = $1 AND thread_id = $2 /* FOR UPDATE */;

-- name: runs_release_all [sqlite]
-- Ends all leases: whoever opens the file alone knows that their owners are dead.
-- across tenants: no lease outlives the process.
UPDATE runs SET lease_expire_time = 0 WHERE lease_expire_time > 0;

-- name: runs_due
-- Runs that no worker watches and whose time is over.
-- across tenants: time passes for all of them.
SELECT tenant, id FROM runs WHERE state IN (1, 3) AND expire_time <= $1 ORDER BY expire_time LIMIT $2;

-- name: queued_messages_put
-- Keeps a message for a run in line.
INSERT INTO queued_messages (tenant, run_id, position, body) VALUES ($1, $2, $3, $4);

-- name: queued_messages_of_run
-- The messages that wait with a run, in order.
SELECT position, body FROM queued_messages WHERE tenant = $1 AND run_id = $2 ORDER BY position;

-- name: queued_messages_delete
-- Removes the messages that wait with a run.
DELETE FROM queued_messages WHERE tenant = $1 AND run_id = $2;

-- name: queued_messages_delete_of_thread
-- Removes the messages that wait with the runs of a thread.
DELETE FROM queued_messages
WHERE tenant = $1 AND run_id IN (SELECT r.id FROM runs r WHERE r.tenant = $1 AND r.thread_id = $2);

-- name: deleted_runs_note
-- Notes the runs of a thread that is deleted at $3.
INSERT INTO deleted_runs (tenant, run_id, thread_id, deleted_time)
SELECT tenant, id, thread_id, $3 FROM runs WHERE tenant = $1 AND thread_id = $2;

-- name: deleted_runs_take
-- Forgets at most $2 of the runs that were deleted at $1 or before; returns whose they were, and their ids.
-- across tenants: what is left outside the store is swept for all of them.
DELETE FROM deleted_runs
WHERE (tenant, run_id) IN (SELECT tenant, run_id FROM deleted_runs WHERE deleted_time <= $1
                           ORDER BY deleted_time LIMIT $2)
RETURNING tenant, thread_id, run_id;

-- name: deleted_runs_note_fork
-- Notes that what is remembered of a thread is to be dropped, as if it were that of a run.
INSERT INTO deleted_runs (tenant, run_id, thread_id, deleted_time) VALUES ($1, $2, $2, $3)
ON CONFLICT (tenant, run_id) DO UPDATE SET deleted_time = excluded.deleted_time;

-- name: deleted_runs_since
-- The runs of a tenant behind an id that were deleted at a time or later and are not forgotten.
SELECT thread_id, run_id FROM deleted_runs
WHERE tenant = $1 AND run_id > $3 AND deleted_time >= $2 ORDER BY run_id LIMIT $4;

-- name: runs_delete_of_thread
-- Removes the runs of a thread.
DELETE FROM runs WHERE tenant = $1 AND thread_id = $2;

-- ---------------------------------------------------------------------------------------------- steps and turns

-- name: steps_put
-- Stores a step of a run that exists.
INSERT INTO run_steps (tenant, run_id, position, id, body)
SELECT tenant, id, $3, $4, $5 FROM runs WHERE tenant = $1 AND id = $2 /* FOR KEY SHARE */
ON CONFLICT (tenant, run_id, position) DO UPDATE SET id = excluded.id, body = excluded.body;

-- name: steps_get
-- A step.
SELECT position, body FROM run_steps WHERE tenant = $1 AND run_id = $2 AND id = $3;

-- name: steps_page
-- Steps behind a position, in order.
SELECT position, body FROM run_steps WHERE tenant = $1 AND run_id = $2 AND position > $3 ORDER BY position LIMIT $4;

-- name: steps_delete_of_thread
-- Removes the steps of all runs of a thread.
DELETE FROM run_steps
WHERE tenant = $1 AND run_id IN (SELECT r.id FROM runs r WHERE r.tenant = $1 AND r.thread_id = $2);

-- name: turns_put
-- Stores a turn of a run that exists.
INSERT INTO run_turns (tenant, run_id, number, seen_sequence, items)
SELECT tenant, id, $3, $4, $5 FROM runs WHERE tenant = $1 AND id = $2 /* FOR KEY SHARE */
ON CONFLICT (tenant, run_id, number) DO UPDATE SET seen_sequence = excluded.seen_sequence, items = excluded.items;

-- name: turns_all
-- All turns of a run, in order.
SELECT number, seen_sequence, items FROM run_turns WHERE tenant = $1 AND run_id = $2 ORDER BY number;

-- name: turns_delete_of_thread
-- Removes the turns of all runs of a thread.
DELETE FROM run_turns
WHERE tenant = $1 AND run_id IN (SELECT r.id FROM runs r WHERE r.tenant = $1 AND r.thread_id = $2);

-- ------------------------------------------------------------------------------------------ request ids, secrets

-- name: requests_hold [postgres]
-- Waits for an equal request that is at work, and keeps later ones away.
SELECT pg_advisory_xact_lock(hashtextextended(concat_ws(chr(31), $1::text, $2::text, $3::text), 0));

-- name: requests_find
-- What a request made, if it is younger than $4.
SELECT fingerprint, resource_id FROM request_ids
WHERE tenant = $1 AND method = $2 AND request_id = $3 AND create_time > $4;

-- name: requests_remember
-- Notes a request; an entry as old as $7 gives way.
INSERT INTO request_ids (tenant, method, request_id, fingerprint, resource_id, create_time)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (tenant, method, request_id)
DO UPDATE SET fingerprint = excluded.fingerprint, resource_id = excluded.resource_id,
              create_time = excluded.create_time
WHERE request_ids.create_time <= $7;

-- name: requests_forget_old
-- Removes some entries as old as $1, oldest first. One that is noted anew at this moment stays.
-- across tenants: what is old is swept for all of them.
DELETE FROM request_ids WHERE create_time <= $1 AND (tenant, method, request_id) IN (
    SELECT tenant, method, request_id FROM request_ids WHERE create_time <= $1 ORDER BY create_time LIMIT $2
);

-- name: secrets_insert
-- Keeps a key, unless there is one of this name.
-- without tenant: the keys are the server's.
INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING;

-- name: secrets_get
-- The key of this name.
-- without tenant: the keys are the server's.
SELECT value FROM secrets WHERE name = $1;

-- name: ping
-- Reads something small, to see that the database answers.
-- without tenant: the schema's version is the server's.
SELECT version_num FROM alembic_version;

-- name: database_time [postgres]
-- The database's clock.
-- without tenant: there is one time.
SELECT clock_timestamp();

-- ------------------------------------------------------------------------------------------------- data keys
-- The scope of a key is a thread's id, or ''.

-- name: data_keys_in_use
-- The key that a scope is sealed with.
SELECT tenant, scope_id, id, kek_id, wrapped FROM data_keys
WHERE tenant = $1 AND scope_id = $2 AND retire_time IS NULL;

-- name: data_keys_insert
-- Adds the key of a scope, unless it has one.
INSERT INTO data_keys (tenant, id, scope_id, kek_id, wrapped, create_time) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (tenant, scope_id) WHERE retire_time IS NULL DO NOTHING;

-- name: data_keys_find [sqlite]
-- Those keys in a JSON array of [tenant, id] that exist.
-- across tenants: a worker opens runs of several at once.
SELECT k.tenant, k.scope_id, k.id, k.kek_id, k.wrapped
FROM json_each($1) AS wanted
CROSS JOIN data_keys k ON k.tenant = wanted.value ->> 0 AND k.id = wanted.value ->> 1;

-- name: data_keys_find [postgres]
-- The same.
-- across tenants: a worker opens runs of several at once.
SELECT k.tenant, k.scope_id, k.id, k.kek_id, k.wrapped
FROM jsonb_array_elements($1::text::jsonb) AS wanted (pair)
JOIN data_keys k ON k.tenant = wanted.pair ->> 0 AND k.id = wanted.pair ->> 1;

-- name: data_keys_delete_of_log
-- Removes the keys of a thread that is deleted, once there are no messages in its log.
DELETE FROM data_keys
WHERE tenant = $1 AND scope_id = $2
  AND EXISTS (SELECT 1 FROM threads t WHERE t.tenant = $1 AND t.id = $2 AND t.deleted_time IS NOT NULL)
  AND NOT EXISTS (SELECT 1 FROM messages m WHERE m.tenant = $1 AND m.log_id = $2)
RETURNING id;

-- name: data_keys_next_wrapping
-- A key of those that were wrapped by the next one of the operator's keys.
-- across tenants: the operator's keys are those of all.
SELECT tenant, scope_id, id, kek_id, wrapped FROM data_keys WHERE kek_id > $1 ORDER BY kek_id LIMIT 1;

-- name: data_keys_wrappings
-- How many keys each of the operator's keys wraps.
-- across tenants: the operator's keys are those of all.
SELECT kek_id, count(*) FROM data_keys WHERE kek_id > '' GROUP BY kek_id ORDER BY kek_id;

-- name: data_keys_wrapped_otherwise
-- Keys that others than one of the operator's keys wrap.
-- across tenants: the operator's keys are those of all.
SELECT tenant, scope_id, id, kek_id, wrapped FROM data_keys WHERE kek_id < $1 OR kek_id > $1 LIMIT $2;

-- name: data_keys_rewrap
-- Stores a key as it is wrapped anew, where it is still wrapped as it was.
-- across tenants: the keys of one pass are of several, and each row names its own.
UPDATE data_keys SET kek_id = $4, wrapped = $5 WHERE tenant = $1 AND id = $2 AND kek_id = $3;

-- name: data_keys_retire
-- Retires the keys of all tenants, but not that of Redis.
-- across tenants: keys of all are renewed together.
UPDATE data_keys SET retire_time = $1 WHERE tenant > '' AND scope_id <> 'redis' AND retire_time IS NULL;

-- name: data_keys_newest_retired
-- When the last of the retired keys was retired.
-- across tenants: keys of all are renewed together.
SELECT retire_time FROM data_keys WHERE retire_time IS NOT NULL ORDER BY retire_time DESC LIMIT 1;

-- name: data_keys_delete_retired
-- Removes the retired keys.
-- across tenants: keys of all are renewed together.
DELETE FROM data_keys WHERE retire_time > 0 RETURNING tenant, id;

-- ---------------------------------------------------------------------------------------------- sealed bodies
-- All rows of a table with a body, some at a time, behind a primary key: thread, id of the row where that is not its
-- primary key, primary key, body. Each with a statement that changes a body ($4 or $3) if it is still the same.

-- name: bodies_count_plain
-- How many bodies of each table do not begin as $1 does.
-- across tenants: the operator encrypts what all have.
SELECT 'assistant_versions', count(*) FROM assistant_versions
WHERE tenant > '' AND length(body) > 0 AND substr(body, 1, 1) <> $1
UNION ALL
SELECT 'threads', count(*) FROM threads WHERE tenant > '' AND length(body) > 0 AND substr(body, 1, 1) <> $1
UNION ALL
SELECT 'messages', count(*) FROM messages WHERE tenant > '' AND length(body) > 0 AND substr(body, 1, 1) <> $1
UNION ALL
SELECT 'message_overrides', count(*) FROM message_overrides
WHERE tenant > '' AND length(body) > 0 AND substr(body, 1, 1) <> $1
UNION ALL
SELECT 'runs', count(*) FROM runs WHERE tenant > '' AND length(body) > 0 AND substr(body, 1, 1) <> $1
UNION ALL
SELECT 'run_steps', count(*) FROM run_steps WHERE tenant > '' AND length(body) > 0 AND substr(body, 1, 1) <> $1
UNION ALL
SELECT 'run_turns', count(*) FROM run_turns WHERE tenant > '' AND length(items) > 0 AND substr(items, 1, 1) <> $1
UNION ALL
SELECT 'queued_messages', count(*) FROM queued_messages
WHERE tenant > '' AND length(body) > 0 AND substr(body, 1, 1) <> $1;

-- name: assistants_bodies
-- Versions of assistants.
-- across tenants: the operator encrypts what all have.
SELECT '', NULL, tenant, assistant_id, version, body FROM assistant_versions
WHERE (tenant, assistant_id, version) > ($1, $2, $3) ORDER BY tenant, assistant_id, version LIMIT $4;

-- name: assistants_reseal
-- One of them.
UPDATE assistant_versions SET body = $5 WHERE tenant = $1 AND assistant_id = $2 AND version = $3 AND body = $4;

-- name: threads_bodies
-- Threads.
-- across tenants: the operator encrypts what all have.
SELECT id, NULL, tenant, id, body FROM threads WHERE (tenant, id) > ($1, $2) ORDER BY tenant, id LIMIT $3;

-- name: threads_reseal
-- One of them.
UPDATE threads SET body = $4 WHERE tenant = $1 AND id = $2 AND body = $3;

-- name: messages_bodies
-- Messages.
-- across tenants: the operator encrypts what all have.
SELECT log_id, id, tenant, log_id, sequence, body FROM messages
WHERE (tenant, log_id, sequence) > ($1, $2, $3) ORDER BY tenant, log_id, sequence LIMIT $4;

-- name: messages_reseal
-- One of them.
UPDATE messages SET body = $5 WHERE tenant = $1 AND log_id = $2 AND sequence = $3 AND body = $4;

-- name: overrides_bodies
-- Overrides of messages.
-- across tenants: the operator encrypts what all have.
SELECT o.thread_id, m.id, o.tenant, o.thread_id, o.sequence, o.body
FROM message_overrides o
JOIN thread_segments s ON s.tenant = o.tenant AND s.thread_id = o.thread_id
    AND s.from_sequence <= o.sequence AND s.upto_sequence >= o.sequence
JOIN messages m ON m.tenant = s.tenant AND m.log_id = s.log_id AND m.sequence = o.sequence
WHERE (o.tenant, o.thread_id, o.sequence) > ($1, $2, $3) ORDER BY o.tenant, o.thread_id, o.sequence LIMIT $4;

-- name: overrides_reseal
-- One of them.
UPDATE message_overrides SET body = $5 WHERE tenant = $1 AND thread_id = $2 AND sequence = $3 AND body = $4;

-- name: runs_bodies
-- Runs.
-- across tenants: the operator encrypts what all have.
SELECT thread_id, NULL, tenant, id, body FROM runs WHERE (tenant, id) > ($1, $2) ORDER BY tenant, id LIMIT $3;

-- name: runs_reseal
-- One of them.
UPDATE runs SET body = $4 WHERE tenant = $1 AND id = $2 AND body = $3;

-- name: steps_bodies
-- Steps of runs.
-- across tenants: the operator encrypts what all have.
SELECT r.thread_id, NULL, p.tenant, p.run_id, p.position, p.body
FROM run_steps p JOIN runs r ON r.tenant = p.tenant AND r.id = p.run_id
WHERE (p.tenant, p.run_id, p.position) > ($1, $2, $3) ORDER BY p.tenant, p.run_id, p.position LIMIT $4;

-- name: steps_reseal
-- One of them.
UPDATE run_steps SET body = $5 WHERE tenant = $1 AND run_id = $2 AND position = $3 AND body = $4;

-- name: turns_bodies
-- Turns of runs.
-- across tenants: the operator encrypts what all have.
SELECT r.thread_id, NULL, p.tenant, p.run_id, p.number, p.items
FROM run_turns p JOIN runs r ON r.tenant = p.tenant AND r.id = p.run_id
WHERE (p.tenant, p.run_id, p.number) > ($1, $2, $3) ORDER BY p.tenant, p.run_id, p.number LIMIT $4;

-- name: turns_reseal
-- One of them.
UPDATE run_turns SET items = $5 WHERE tenant = $1 AND run_id = $2 AND number = $3 AND items = $4;

-- name: queued_messages_bodies
-- Messages that wait with runs.
-- across tenants: the operator encrypts what all have.
SELECT r.thread_id, NULL, p.tenant, p.run_id, p.position, p.body
FROM queued_messages p JOIN runs r ON r.tenant = p.tenant AND r.id = p.run_id
WHERE (p.tenant, p.run_id, p.position) > ($1, $2, $3) ORDER BY p.tenant, p.run_id, p.position LIMIT $4;

-- name: queued_messages_reseal
-- One of them.
UPDATE queued_messages SET body = $5 WHERE tenant = $1 AND run_id = $2 AND position = $3 AND body = $4;

-- -------------------------------------------------------------------------------------------- usage and spending
-- States from 5 on are final: 5 CANCELLED, 7 COMPLETED. Verdicts: 1 GOOD, 2 BAD.

-- name: usage_put
-- Notes what a run has used so far. Whose it is does not change.
INSERT INTO run_usage (tenant, run_id, create_time, user_id, assistant_id, model, variant, state, verdict, degraded,
                       prompt_tokens, completion_tokens, total_tokens, cached_prompt_tokens, reasoning_tokens,
                       estimated, cost_nanos)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
ON CONFLICT (tenant, run_id)
DO UPDATE SET variant = excluded.variant, state = excluded.state, verdict = excluded.verdict,
              degraded = excluded.degraded, prompt_tokens = excluded.prompt_tokens,
              completion_tokens = excluded.completion_tokens, total_tokens = excluded.total_tokens,
              cached_prompt_tokens = excluded.cached_prompt_tokens, reasoning_tokens = excluded.reasoning_tokens,
              estimated = excluded.estimated, cost_nanos = excluded.cost_nanos;

-- name: usage_cancel_of_thread
-- The runs of a thread that is deleted and that have not ended are cancelled.
UPDATE run_usage SET state = 5
WHERE tenant = $1 AND state < 5 AND run_id IN (SELECT r.id FROM runs r WHERE r.tenant = $1 AND r.thread_id = $2);

-- name: usage_page
-- Sums over the runs that were created from $2 and before $3, in groups: by spans of $4 microseconds, unless that is 0;
-- by user, assistant, model and variant where $5 to $8 say so. Only those with the fields $9 to $12, where they are not
-- empty. In order, behind a group.
SELECT span, user_id, assistant_id, model, variant,
       count(*),
       count(*) FILTER (WHERE state >= 5),
       count(*) FILTER (WHERE state = 5),
       count(*) FILTER (WHERE state = 7 AND verdict <> 2),
       count(*) FILTER (WHERE verdict = 1),
       count(*) FILTER (WHERE verdict = 2),
       count(*) FILTER (WHERE degraded),
       CAST(sum(prompt_tokens) AS BIGINT), CAST(sum(completion_tokens) AS BIGINT), CAST(sum(total_tokens) AS BIGINT),
       CAST(sum(cached_prompt_tokens) AS BIGINT), CAST(sum(reasoning_tokens) AS BIGINT),
       count(*) FILTER (WHERE estimated),
       CAST(sum(cost_nanos) AS BIGINT)
FROM (
    SELECT CASE WHEN CAST($4 AS BIGINT) = 0 THEN 0 ELSE create_time - create_time % CAST($4 AS BIGINT) END AS span,
           CASE WHEN $5 THEN user_id ELSE '' END AS user_id,
           CASE WHEN $6 THEN assistant_id ELSE '' END AS assistant_id,
           CASE WHEN $7 THEN model ELSE '' END AS model,
           CASE WHEN $8 THEN variant ELSE '' END AS variant,
           state, verdict, degraded, prompt_tokens, completion_tokens, total_tokens, cached_prompt_tokens,
           reasoning_tokens, estimated, cost_nanos
    FROM run_usage
    WHERE tenant = $1 AND create_time >= $2 AND create_time < $3
      AND ($9 = '' OR user_id = $9) AND ($10 = '' OR assistant_id = $10)
      AND ($11 = '' OR model = $11) AND ($12 = '' OR variant = $12)
) AS seen
WHERE (span, user_id, assistant_id, model, variant) > ($13, $14, $15, $16, $17)
GROUP BY span, user_id, assistant_id, model, variant
ORDER BY span, user_id, assistant_id, model, variant LIMIT $18;

-- name: usage_anonymize
-- Takes the name of a user from some records.
UPDATE run_usage SET user_id = ''
WHERE tenant = $1 AND run_id IN (SELECT u.run_id FROM run_usage u
                                 WHERE u.tenant = $1 AND u.user_id = $2 AND u.user_id <> '' LIMIT $3);

-- name: spending_delete_of_user
-- Forgets what a user has spent.
DELETE FROM spending WHERE tenant = $1 AND user_id = $2 AND user_id <> '';

-- name: spending_get [sqlite]
-- What users, or the whole tenant (''), have spent in periods, by the places in a JSON array of [place, user, start of the
-- period]; nothing where it is not counted yet.
SELECT wanted.value ->> 0, s.cost_nanos
FROM json_each($2) AS wanted
CROSS JOIN spending s ON s.tenant = $1 AND s.user_id = wanted.value ->> 1 AND s.period_start = wanted.value ->> 2;

-- name: spending_get [postgres]
-- The same. Why OFFSET 0: see threads_page_with_metadata.
SELECT wanted.place, s.cost_nanos
FROM (SELECT (one ->> 0)::bigint AS place, one ->> 1 AS user_id, (one ->> 2)::bigint AS period_start
      FROM jsonb_array_elements($2::text::jsonb) AS given (one) OFFSET 0) AS wanted
JOIN spending s ON s.tenant = $1 AND s.user_id = wanted.user_id AND s.period_start = wanted.period_start;

-- name: spending_add
-- Adds to what a user, or the whole tenant (''), has spent in a period. Where that is not counted yet, it begins with
-- what the runs created in the period have cost, which is looked up only then.
INSERT INTO spending (tenant, user_id, period_start, cost_nanos)
VALUES ($1, $2, $3, CAST($4 AS BIGINT) + CASE
    WHEN EXISTS (SELECT 1 FROM spending s WHERE s.tenant = $1 AND s.user_id = $2 AND s.period_start = $3) THEN 0
    WHEN $2 = '' THEN (SELECT CAST(COALESCE(sum(u.cost_nanos), 0) AS BIGINT) FROM run_usage u
                       WHERE u.tenant = $1 AND u.create_time >= $3)
    ELSE (SELECT CAST(COALESCE(sum(u.cost_nanos), 0) AS BIGINT) FROM run_usage u
          WHERE u.tenant = $1 AND u.user_id = $2 AND u.create_time >= $3) END)
ON CONFLICT (tenant, user_id, period_start) DO UPDATE SET cost_nanos = spending.cost_nanos + $4;

-- ------------------------------------------------------------------------------------------------ audit log
-- One chain for all tenants. Rows are added at its end and never change: triggers refuse that.

-- name: audit_hold [postgres]
-- Keeps all others from adding rows. The number is only to be the same at all replicas.
-- without tenant: the chain is one.
SELECT pg_advisory_xact_lock(6999521861);

-- name: audit_find
-- Whether an entry is there.
-- across tenants: the chain is one.
SELECT number FROM audit_log WHERE id = $1;

-- name: audit_head
-- The last row.
-- across tenants: the chain is one.
SELECT number, tenant, time, method, body, hash FROM audit_log
WHERE number = (SELECT max(l.number) FROM audit_log l);

-- name: audit_insert
-- Adds a row.
-- across tenants: the chain is one.
INSERT INTO audit_log (number, id, tenant, time, method, body, hash) VALUES ($1, $2, $3, $4, $5, $6, $7);

-- name: audit_page
-- Rows behind a number.
-- across tenants: the chain is one.
SELECT number, tenant, time, method, body, hash FROM audit_log WHERE number > $1 ORDER BY number LIMIT $2;

-- name: audit_page_of_tenant
-- Rows of a tenant behind a number.
SELECT number, tenant, time, method, body, hash FROM audit_log
WHERE tenant = $1 AND number > $2 ORDER BY number LIMIT $3;


-- ------------------------------------------------------------------------------------------------- deletions

-- name: deletions_insert
-- Adds a deletion, unless one of this user is under way.
INSERT INTO deletions (tenant, id, user_id, done, create_time, until, body) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (tenant, user_id) WHERE user_id <> '' DO NOTHING;

-- name: deletions_get
-- A deletion.
SELECT user_id, body, until FROM deletions WHERE tenant = $1 AND id = $2 /* FOR UPDATE */;

-- name: deletions_join
-- The deletion of a user that is under way, from now on about what was created until $3, too.
UPDATE deletions SET until = CASE WHEN until < $3 THEN $3 ELSE until END
WHERE tenant = $1 AND user_id = $2 AND user_id <> ''
RETURNING user_id, body, until;

-- name: deletions_replace
-- Stores how far a deletion is.
UPDATE deletions SET user_id = $3, done = $4, body = $5 WHERE tenant = $1 AND id = $2;

-- name: deletions_under_way
-- Deletions that began before a time and are not done, oldest first.
-- across tenants: whoever finds one goes on with it.
SELECT tenant, id FROM deletions WHERE NOT done AND create_time < $1 ORDER BY create_time LIMIT $2;
