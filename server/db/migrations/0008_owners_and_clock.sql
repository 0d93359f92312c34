-- Keys know the worker that works on them, and the database remembers since when its clock has run steadily. Expands only.

ALTER TABLE idempotency_keys ADD COLUMN owner uuid;
COMMENT ON COLUMN idempotency_keys.owner IS 'the worker whose request this is: while it lives and in_flight_until is not over, the key is in flight';

CREATE TABLE database_clock (
    id                  boolean PRIMARY KEY DEFAULT true CHECK (id),
    seen_at             timestamptz NOT NULL,
    steady_since        timestamptz NOT NULL
);
COMMENT ON TABLE database_clock IS 'reference table: one row, when a worker last saw the clock of the database and since when it has not jumped; nothing is pruned for a day after a jump';

GRANT SELECT ON database_clock TO florin_app, florin_console, florin_read;
GRANT INSERT, UPDATE ON database_clock TO florin_app;
