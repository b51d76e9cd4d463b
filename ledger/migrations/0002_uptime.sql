-- Uptime: one narrow row per node that each report rewrites, and rows of history that come with
-- restarts and outages only. Times are Unix seconds, but for last_seen.

CREATE TABLE presence (
    node      BIGINT PRIMARY KEY REFERENCES nodes (id),
    -- 0 before the first report.
    last_seen BIGINT NOT NULL,
    -- The time up to now that reports vouch for without a hole.
    up_from   BIGINT,
    up_until  BIGINT,
    -- The boot that was heard of last: its id, if the node says one, its beginning, and the highest
    -- sequence of its reports.
    boot      TEXT,
    booted_at BIGINT,
    sequence  BIGINT NOT NULL
);
-- Lists of nodes that are online read this and nothing else.
CREATE INDEX presence_seen ON presence (node, last_seen);

-- Earlier times without a hole.
CREATE TABLE spans (
    node     BIGINT NOT NULL REFERENCES nodes (id),
    up_from  BIGINT NOT NULL,
    up_until BIGINT NOT NULL,
    PRIMARY KEY (node, up_from)
);

-- Earlier boots that said their id.
CREATE TABLE boots (
    node      BIGINT NOT NULL REFERENCES nodes (id),
    boot      TEXT   NOT NULL,
    booted_at BIGINT NOT NULL,
    sequence  BIGINT NOT NULL,
    PRIMARY KEY (node, boot)
);

-- What was odd: restart, skew, lie.
CREATE TABLE uptime_events (
    node   BIGINT NOT NULL REFERENCES nodes (id),
    at     BIGINT NOT NULL,
    kind   TEXT   NOT NULL,
    detail TEXT   NOT NULL,
    PRIMARY KEY (node, at, kind)
);

INSERT INTO presence (node, last_seen, up_from, up_until, booted_at, sequence)
SELECT n.id, COALESCE(n.last_seen, 0), r.reported_at, r.reported_at, r.reported_at - r.uptime, 0
FROM nodes n
LEFT JOIN uptime_reports r ON r.node = n.id
    AND r.reported_at = (SELECT MAX(reported_at) FROM uptime_reports WHERE node = n.id);

DROP TABLE uptime_reports;
ALTER TABLE nodes DROP COLUMN last_seen;

DROP INDEX nodes_of_farm;
CREATE INDEX nodes_of_farm ON nodes (farm, id);
