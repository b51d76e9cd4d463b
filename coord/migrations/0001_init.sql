-- The dialect of both SQLite and PostgreSQL. Times are Unix milliseconds, JSON is TEXT.

CREATE TABLE deployments (
    account      BIGINT NOT NULL,
    name         TEXT   NOT NULL,
    version      BIGINT NOT NULL,
    -- The number of its newest event.
    last_event   BIGINT NOT NULL,
    submitted_at BIGINT NOT NULL,
    updated_at   BIGINT NOT NULL,
    PRIMARY KEY (account, name)
);

-- The bytes as they came; what a node gets is never anything else.
CREATE TABLE envelopes (
    digest      TEXT   NOT NULL PRIMARY KEY,
    account     BIGINT NOT NULL,
    name        TEXT   NOT NULL,
    version     BIGINT NOT NULL,
    accepted_at BIGINT NOT NULL,
    bytes       BYTEA  NOT NULL
);
CREATE INDEX envelopes_of_deployment ON envelopes (account, name, accepted_at);

CREATE TABLE nonces (
    account     BIGINT NOT NULL,
    nonce       TEXT   NOT NULL,
    name        TEXT   NOT NULL,
    version     BIGINT NOT NULL,
    accepted_at BIGINT NOT NULL,
    expires_at  BIGINT NOT NULL,
    PRIMARY KEY (account, nonce)
);
CREATE INDEX nonces_by_expiry ON nonces (expires_at);

CREATE TABLE tasks (
    account     BIGINT  NOT NULL,
    name        TEXT    NOT NULL,
    node        BIGINT  NOT NULL,
    version     BIGINT  NOT NULL,
    phase       TEXT    NOT NULL,
    -- What the node shall have, and whether it has answered that it has.
    envelope    TEXT    NOT NULL,
    delivered   BOOLEAN NOT NULL,
    -- Whether anything of the deployment may be on the node.
    holds       BOOLEAN NOT NULL,
    -- The envelope of the newest version that was ready there.
    good        TEXT,
    failure     TEXT,
    outputs     TEXT,
    -- The task as the node showed it last.
    view        TEXT,
    waiting_for TEXT,
    updated_at  BIGINT  NOT NULL,
    PRIMARY KEY (account, name, node)
);
CREATE INDEX tasks_of_node ON tasks (node);
CREATE INDEX tasks_undelivered ON tasks (delivered);

CREATE TABLE events (
    account BIGINT NOT NULL,
    name    TEXT   NOT NULL,
    number  BIGINT NOT NULL,
    body    TEXT   NOT NULL,
    PRIMARY KEY (account, name, number)
);

-- How far each node's events are mirrored; moves in the transaction that stores them.
CREATE TABLE cursors (
    node  BIGINT NOT NULL PRIMARY KEY,
    place TEXT   NOT NULL
);

-- Keys that the ledger named, so that reads go on while it is away.
CREATE TABLE accounts (
    id  BIGINT NOT NULL PRIMARY KEY,
    key TEXT   NOT NULL
);
CREATE INDEX accounts_by_key ON accounts (key);

CREATE TABLE audit (
    at      BIGINT NOT NULL,
    digest  TEXT   NOT NULL,
    keyids  TEXT   NOT NULL,
    account BIGINT,
    code    TEXT   NOT NULL,
    message TEXT   NOT NULL
);
CREATE INDEX audit_by_time ON audit (at);
