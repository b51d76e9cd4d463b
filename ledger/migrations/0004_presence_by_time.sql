-- Who is away is a short range of this one; who is up is read along the primary key.
DROP INDEX presence_seen;
CREATE INDEX presence_seen ON presence (last_seen, node);
