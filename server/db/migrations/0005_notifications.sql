-- Webhook endpoints that merchants manage, in order or in parallel; the log of deliveries; named consumers of the stream and tickets
-- for browsers. Expands only: workers of the version before send everything in parallel until they are gone.

ALTER TABLE webhook_endpoints
    ADD COLUMN mode                     text NOT NULL DEFAULT 'parallel' CHECK (mode IN ('parallel', 'ordered')),
    ADD COLUMN event_types              text[],
    ADD COLUMN description              text NOT NULL DEFAULT '' CHECK (length(description) <= 255),
    ADD COLUMN requests_per_second_max  integer CHECK (requests_per_second_max BETWEEN 1 AND 10000),
    ADD COLUMN concurrency_max          integer NOT NULL DEFAULT 32 CHECK (concurrency_max BETWEEN 1 AND 256),
    ADD COLUMN disabled_reason          text CHECK (disabled_reason IN ('merchant', 'gone', 'failing', 'deleted')),
    ADD COLUMN disabled_at              timestamptz,
    ADD COLUMN failing_since            timestamptz,
    ADD COLUMN sealed_old_secret        bytea,
    ADD COLUMN old_secret_until         timestamptz,
    ADD COLUMN lease_token              uuid,
    ADD COLUMN lease_until              timestamptz,
    ADD COLUMN held_until               timestamptz,
    ADD COLUMN updated_at               timestamptz NOT NULL DEFAULT now();
ALTER TABLE webhook_endpoints SET (fillfactor = 50);
COMMENT ON COLUMN webhook_endpoints.event_types IS 'types like payment.succeeded or payment.*; null is all';
COMMENT ON COLUMN webhook_endpoints.lease_until IS 'who sends in order here, by lease_token; on the database''s clock, as is held_until, the time of the next attempt';

ALTER TABLE events ALTER COLUMN payment_id DROP NOT NULL;

ALTER TABLE deliveries
    ADD COLUMN is_ordered               boolean NOT NULL DEFAULT false,
    ADD COLUMN last_milliseconds        integer,
    ADD COLUMN last_response            text CHECK (length(last_response) <= 2000),
    DROP CONSTRAINT deliveries_state_check,
    ADD CONSTRAINT deliveries_state_check CHECK (state IN ('PENDING', 'DELIVERED', 'DEAD', 'DROPPED')),
    DROP CONSTRAINT due_exactly_while_pending,
    ADD CONSTRAINT due_exactly_while_pending CHECK ((state = 'PENDING' AND NOT is_ordered) = (due_at IS NOT NULL));
DROP INDEX deliveries_due;
CREATE INDEX deliveries_due ON deliveries (merchant_id, endpoint_id, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_ordered ON deliveries (merchant_id, endpoint_id, event_seq) WHERE is_ordered AND state = 'PENDING';
CREATE INDEX deliveries_dead ON deliveries (merchant_id, endpoint_id, event_seq) WHERE state = 'DEAD';
COMMENT ON COLUMN deliveries.is_ordered IS 'waits for its turn behind the earlier events of its endpoint; the time is the endpoint''s held_until';

CREATE TABLE delivery_attempts (
    merchant_id         uuid NOT NULL,
    endpoint_id         uuid NOT NULL,
    event_seq           bigint NOT NULL,
    id                  uuid NOT NULL,
    attempt             integer NOT NULL,
    status              integer,
    error               text NOT NULL,
    milliseconds        integer NOT NULL,
    response            text CHECK (length(response) <= 2000),
    created_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, endpoint_id, event_seq, id)
);
COMMENT ON TABLE delivery_attempts IS 'attempts that failed; what succeeded is told by the delivery itself';
CREATE INDEX delivery_attempts_by_age ON delivery_attempts USING brin (created_at);

CREATE TABLE stream_cursors (
    merchant_id         uuid NOT NULL,
    consumer            text NOT NULL CHECK (consumer ~ '^[A-Za-z0-9_.-]{1,64}$'),
    acked_seq           bigint NOT NULL CHECK (acked_seq >= 0),
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, consumer)
) WITH (fillfactor = 50);

CREATE TABLE stream_tickets (
    merchant_id         uuid NOT NULL,
    ticket_sha256       bytea NOT NULL CHECK (length(ticket_sha256) = 32),
    key_id              uuid NOT NULL,
    origin              text NOT NULL,
    event_types         text[],
    consumer            text,
    expires_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, ticket_sha256)
);

CREATE INDEX stream_tickets_by_age ON stream_tickets (expires_at);

CREATE TABLE sequence_epochs (
    epoch               uuid PRIMARY KEY,
    started_at          timestamptz NOT NULL
);
COMMENT ON TABLE sequence_epochs IS 'reference table: a database that is restored from a backup gets a new row, because sequence numbers that clients remember mean other events then';
INSERT INTO sequence_epochs (epoch, started_at) VALUES (gen_random_uuid(), now());

ALTER TABLE idempotency_keys
    DROP CONSTRAINT idempotency_keys_operation_check,
    ADD CONSTRAINT idempotency_keys_operation_check CHECK (operation IN ('create', 'capture', 'cancel', 'refund', 'endpoint'));
COMMENT ON COLUMN idempotency_keys.payment_id IS 'what the request is about: a payment, or for endpoint a webhook endpoint';

GRANT INSERT, UPDATE ON webhook_endpoints TO florin_app;
GRANT SELECT (mode, event_types, description, requests_per_second_max, concurrency_max, disabled_reason, disabled_at, failing_since,
    old_secret_until, lease_until, held_until, updated_at) ON webhook_endpoints TO florin_read;
GRANT SELECT ON delivery_attempts, stream_cursors, sequence_epochs TO florin_app, florin_console, florin_read;
GRANT SELECT ON stream_tickets TO florin_app;
GRANT INSERT, DELETE ON delivery_attempts, stream_tickets TO florin_app;
GRANT INSERT, UPDATE, DELETE ON stream_cursors TO florin_app;
GRANT UPDATE (state, attempts, due_at, updated_at) ON deliveries TO florin_console;
