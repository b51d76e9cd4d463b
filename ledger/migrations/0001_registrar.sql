-- Portable between SQLite and PostgreSQL: BIGINT ids that we give ourselves, BIGINT microseconds,
-- BYTEA, JSON as TEXT; no SERIAL, no TIMESTAMPTZ.

-- What this database is for.
CREATE TABLE settings (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- The last id of each kind. Ids count from 1, have no gaps and are never given twice.
CREATE TABLE sequences (
    name TEXT PRIMARY KEY,
    last BIGINT NOT NULL
);
INSERT INTO sequences (name, last) VALUES ('account', 0);
INSERT INTO sequences (name, last) VALUES ('farm', 0);
INSERT INTO sequences (name, last) VALUES ('node', 0);

CREATE TABLE accounts (
    id          BIGINT PRIMARY KEY,
    public_key  BYTEA  NOT NULL UNIQUE,
    relays      TEXT,
    rmb_enc_key TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL
);

CREATE TABLE farms (
    id              BIGINT  PRIMARY KEY,
    name            TEXT    NOT NULL UNIQUE,
    account         BIGINT  NOT NULL REFERENCES accounts (id),
    stellar_address TEXT    NOT NULL,
    dedicated       BOOLEAN NOT NULL,
    created_at      BIGINT  NOT NULL,
    updated_at      BIGINT  NOT NULL
);
CREATE INDEX farms_of_account ON farms (account);

CREATE TABLE nodes (
    id             BIGINT  PRIMARY KEY,
    farm           BIGINT  NOT NULL REFERENCES farms (id),
    account        BIGINT  NOT NULL UNIQUE REFERENCES accounts (id),
    location       TEXT    NOT NULL,
    hru            BIGINT  NOT NULL,
    sru            BIGINT  NOT NULL,
    cru            BIGINT  NOT NULL,
    mru            BIGINT  NOT NULL,
    interfaces     TEXT    NOT NULL,
    secure_boot    BOOLEAN NOT NULL,
    virtualized    BOOLEAN NOT NULL,
    serial_number  TEXT    NOT NULL,
    supervisor_url TEXT,
    approved       BOOLEAN NOT NULL,
    last_seen      BIGINT,
    created_at     BIGINT  NOT NULL,
    updated_at     BIGINT  NOT NULL
);
CREATE INDEX nodes_of_farm ON nodes (farm);

CREATE TABLE uptime_reports (
    node        BIGINT  NOT NULL REFERENCES nodes (id),
    reported_at BIGINT  NOT NULL,
    uptime      BIGINT  NOT NULL,
    was_restart BOOLEAN NOT NULL,
    PRIMARY KEY (node, reported_at)
);
