-- Batches of payments, carried out under a deadline by whichever worker holds the lease; and alerts to the people who run this.

CREATE TABLE batches (
    merchant_id         uuid NOT NULL,
    id                  uuid NOT NULL,
    status              text NOT NULL CHECK (status IN ('RUNNING', 'COMPLETED', 'TIMED_OUT', 'STOPPED')),
    count               integer NOT NULL CHECK (count BETWEEN 1 AND 10000),
    concurrency         integer NOT NULL CHECK (concurrency BETWEEN 1 AND 2500),
    run                 integer NOT NULL DEFAULT 1 CHECK (run >= 1),
    run_position        integer NOT NULL DEFAULT 0,
    deadline_seconds    integer NOT NULL CHECK (deadline_seconds BETWEEN 1 AND 900),
    deadline_at         timestamptz NOT NULL,
    is_stopping         boolean NOT NULL DEFAULT false,
    sealed_items        bytea,
    created_at          timestamptz NOT NULL,
    started_at          timestamptz NOT NULL,
    finished_at         timestamptz,
    lease_token         uuid,
    lease_until         timestamptz,
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT finished_unless_running CHECK ((status = 'RUNNING') = (finished_at IS NULL)),
    CONSTRAINT running_ones_can_be_carried_out CHECK (status <> 'RUNNING' OR sealed_items IS NOT NULL)
);
COMMENT ON COLUMN batches.sealed_items IS 'what is to be done, sealed, for it holds tokens; forgotten once nothing is left to do, or it can be resumed no more';
COMMENT ON COLUMN batches.run IS 'counts the first run and its resumptions; started_at and the deadline are those of the last one, whose results are behind run_position';
COMMENT ON COLUMN batches.lease_until IS 'which worker carries it out, by lease_token, on the database''s clock';
CREATE INDEX batches_running ON batches (started_at) WHERE status = 'RUNNING';
CREATE INDEX batches_sealed ON batches (created_at) WHERE sealed_items IS NOT NULL;

CREATE TABLE batch_items (
    merchant_id         uuid NOT NULL,
    batch_id            uuid NOT NULL,
    number              integer NOT NULL CHECK (number >= 1),
    position            integer NOT NULL CHECK (position >= 1),
    type                text NOT NULL CHECK (type IN ('charge', 'verify', 'capture', 'refund')),
    status              text NOT NULL CHECK (status IN ('SUCCEEDED', 'DECLINED', 'PENDING', 'UNKNOWN', 'FAILED')),
    reference           text CHECK (length(reference) <= 255),
    payment_id          uuid,
    payment_status      text,
    refund_id           uuid,
    did_check_again     boolean NOT NULL,
    code                text,
    detail              text CHECK (length(detail) <= 1000),
    finished_at         timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, batch_id, number),
    FOREIGN KEY (merchant_id, batch_id) REFERENCES batches (merchant_id, id)
);
COMMENT ON TABLE batch_items IS 'what came of the items of a batch, in the order of position; an item without a row was never started';
CREATE INDEX batch_items_in_order ON batch_items (merchant_id, batch_id, position);

CREATE TABLE alerts (
    merchant_id         uuid NOT NULL,
    key                 text NOT NULL CHECK (length(key) BETWEEN 1 AND 200),
    kind                text NOT NULL,
    title               text NOT NULL CHECK (length(title) <= 500),
    detail              text NOT NULL CHECK (length(detail) <= 4000),
    times               integer NOT NULL DEFAULT 1,
    first_at            timestamptz NOT NULL,
    last_at             timestamptz NOT NULL,
    sent_at             timestamptz,
    due_at              timestamptz,
    attempts            integer NOT NULL DEFAULT 0,
    last_error          text,
    PRIMARY KEY (merchant_id, key)
);
COMMENT ON TABLE alerts IS 'what people were told, or are to be told where due_at is set; merchant_id is all zeros for what is of no merchant';
CREATE INDEX alerts_due ON alerts (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX alerts_by_age ON alerts (last_at);
CREATE INDEX findings_by_age ON findings (created_at) WHERE resolved_at IS NULL;
CREATE INDEX psp_inbox_dead ON psp_inbox (updated_at) WHERE state = 'DEAD';
CREATE INDEX deliveries_dead_by_age ON deliveries (updated_at) WHERE state = 'DEAD';

ALTER TABLE idempotency_keys
    DROP CONSTRAINT idempotency_keys_operation_check,
    ADD CONSTRAINT idempotency_keys_operation_check
        CHECK (operation IN ('create', 'capture', 'cancel', 'refund', 'endpoint', 'batch'));
COMMENT ON COLUMN idempotency_keys.payment_id IS 'what the request is about: a payment, for endpoint a webhook endpoint, for batch a batch';

GRANT SELECT, INSERT, UPDATE ON batches, batch_items TO florin_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON alerts TO florin_app;
GRANT SELECT (merchant_id, id, status, count, concurrency, run, run_position, deadline_seconds, deadline_at, is_stopping, created_at, started_at,
    finished_at, lease_until) ON batches TO florin_console, florin_read;
GRANT SELECT ON batch_items, alerts TO florin_console, florin_read;
GRANT INSERT, UPDATE ON alerts TO florin_console;
