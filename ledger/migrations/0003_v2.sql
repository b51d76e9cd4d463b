-- Keys beside and before the one in accounts.public_key. An account of which no key was ever changed
-- has no rows here. A key that was ever an account's is no other's.
CREATE TABLE account_keys (
    key       BYTEA  PRIMARY KEY,
    account   BIGINT NOT NULL REFERENCES accounts (id),
    place     BIGINT NOT NULL,
    weight    BIGINT NOT NULL,
    since     BIGINT NOT NULL,
    ended_at  BIGINT,
    ended_how TEXT
);
CREATE INDEX account_keys_of_account ON account_keys (account);

ALTER TABLE accounts ADD COLUMN threshold BIGINT NOT NULL DEFAULT 1;
-- All its keys have ended. public_key then stays what it was last.
ALTER TABLE accounts ADD COLUMN revoked BOOLEAN NOT NULL DEFAULT FALSE;

ALTER TABLE farms ADD COLUMN closed BOOLEAN NOT NULL DEFAULT FALSE;

CREATE TABLE coordinators (
    key        BYTEA   PRIMARY KEY,
    account    BIGINT  NOT NULL REFERENCES accounts (id),
    url        TEXT    NOT NULL,
    withdrawn  BOOLEAN NOT NULL,
    created_at BIGINT  NOT NULL
);

-- The coordinators that may follow the nodes of a farm.
CREATE TABLE farm_coordinators (
    farm        BIGINT NOT NULL REFERENCES farms (id),
    coordinator BYTEA  NOT NULL,
    PRIMARY KEY (farm, coordinator)
);
CREATE INDEX farms_of_coordinator ON farm_coordinators (coordinator);

-- cpu in thousandths of a processor; memory and disk in bytes; times in Unix seconds.
CREATE TABLE grants (
    id         BIGINT PRIMARY KEY,
    farm       BIGINT NOT NULL REFERENCES farms (id),
    account    BIGINT NOT NULL REFERENCES accounts (id),
    node       BIGINT REFERENCES nodes (id),
    cpu        BIGINT NOT NULL,
    memory     BIGINT NOT NULL,
    disk       BIGINT NOT NULL,
    until      BIGINT,
    created_at BIGINT NOT NULL,
    ended_at   BIGINT
);
CREATE INDEX grants_of_farm ON grants (farm);
INSERT INTO sequences (name, last) VALUES ('grant', 0);

-- What a node said last about what it has free and how it is.
CREATE TABLE node_status (
    node        BIGINT PRIMARY KEY REFERENCES nodes (id),
    -- When the node signed it, in Unix seconds: an older one never replaces a newer.
    signed_at   BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    capacity    TEXT   NOT NULL,
    reasons     TEXT   NOT NULL
);

-- The last change of each subject of a statement. One that never changed has no row: revision 0.
CREATE TABLE subjects (
    subject  TEXT   PRIMARY KEY,
    revision BIGINT NOT NULL
);
CREATE UNIQUE INDEX subjects_by_revision ON subjects (revision);
INSERT INTO sequences (name, last) VALUES ('revision', 0);

-- Requests that were made, until they would be out of time anyway.
CREATE TABLE nonces (
    once    BYTEA  PRIMARY KEY,
    expires BIGINT NOT NULL
);
CREATE INDEX nonces_by_expiry ON nonces (expires);

-- Every change, each with the hash of the one before: only ever added to.
CREATE TABLE audit (
    number  BIGINT PRIMARY KEY,
    at      BIGINT NOT NULL,
    account BIGINT,
    key     TEXT   NOT NULL,
    action  TEXT   NOT NULL,
    subject TEXT   NOT NULL,
    detail  TEXT   NOT NULL,
    hash    BYTEA  NOT NULL
);
INSERT INTO sequences (name, last) VALUES ('audit', 0);
