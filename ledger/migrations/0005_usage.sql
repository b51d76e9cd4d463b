-- What the deployments of an account reserve of a node, as the node said it last. A grant of a farm
-- counts over all its nodes together, so somebody must know the sum. What is told back to nothing
-- stays as a row: its number keeps what is older from coming back.
CREATE TABLE node_usage (
    account BIGINT NOT NULL REFERENCES accounts (id),
    node    BIGINT NOT NULL REFERENCES nodes (id),
    number  BIGINT NOT NULL,
    cpu     BIGINT NOT NULL,
    memory  BIGINT NOT NULL,
    disk    BIGINT NOT NULL,
    PRIMARY KEY (account, node)
);
CREATE INDEX usage_of_node ON node_usage (node);
