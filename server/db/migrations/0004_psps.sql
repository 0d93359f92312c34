-- Many accounts at several PSPs: which payments go where, what all workers share of each, the events that cannot be applied yet, and
-- how risky a payment was found. Expands only.

ALTER TABLE psp_accounts
    DROP CONSTRAINT psp_accounts_psp_check,
    ADD CONSTRAINT psp_accounts_psp_check CHECK (psp IN ('sandbox', 'stripe')),
    ADD COLUMN name                     text NOT NULL DEFAULT '' CHECK (length(name) <= 200),
    ADD COLUMN enabled                  boolean NOT NULL DEFAULT true,
    ADD COLUMN concurrency_max          integer NOT NULL DEFAULT 2000 CHECK (concurrency_max BETWEEN 1 AND 100000),
    ADD COLUMN requests_per_second_max  integer CHECK (requests_per_second_max BETWEEN 1 AND 100000),
    ADD COLUMN sealed_old_webhook_secret bytea,
    ADD COLUMN old_webhook_secret_until timestamptz;
COMMENT ON COLUMN psp_accounts.enabled IS 'whether new payments may go here; those that are here are captured, refunded and looked at all the same';

CREATE TABLE psp_routes (
    merchant_id         uuid NOT NULL REFERENCES merchants,
    position            integer NOT NULL CHECK (position BETWEEN 1 AND 100),
    psp_account_id      uuid NOT NULL,
    currency            text CHECK (currency ~ '^[A-Z]{3}$'),
    amount_minor_min    bigint CHECK (amount_minor_min > 0),
    amount_minor_max    bigint CHECK (amount_minor_max > 0),
    PRIMARY KEY (merchant_id, position),
    CONSTRAINT amounts_need_a_currency CHECK (currency IS NOT NULL OR (amount_minor_min IS NULL AND amount_minor_max IS NULL))
);

CREATE TABLE psp_states (
    psp_account_id      uuid PRIMARY KEY,
    rate_used_until     timestamptz NOT NULL DEFAULT '-infinity',
    open_until          timestamptz,
    probe_until         timestamptz,
    events_read_until   timestamptz,
    events_due_at       timestamptz
);
COMMENT ON TABLE psp_states IS 'reference table: what the workers share about an account; on the database''s clock';

CREATE TABLE workers (
    id                  uuid PRIMARY KEY,
    seen_at             timestamptz NOT NULL
);
COMMENT ON TABLE workers IS 'reference table: which workers live, for what they divide among themselves; on the database''s clock';

CREATE TABLE psp_inbox (
    merchant_id         uuid NOT NULL,
    psp_account_id      uuid NOT NULL,
    event_id            text NOT NULL,
    type                text NOT NULL,
    notice              text,
    state               text NOT NULL CHECK (state IN ('WAITING', 'DONE', 'DEAD', 'DROPPED')),
    attempts            integer NOT NULL CHECK (attempts >= 0),
    last_error          text NOT NULL,
    due_at              timestamptz,
    received_at         timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, psp_account_id, event_id),
    CONSTRAINT due_exactly_while_waiting CHECK ((state = 'WAITING') = (due_at IS NOT NULL))
);
CREATE INDEX psp_inbox_due ON psp_inbox (due_at) WHERE due_at IS NOT NULL;
COMMENT ON COLUMN psp_inbox.notice IS 'what was read from the event, as JSON: no text of the PSP''s that Florin does not use; null where it could not be read';

ALTER TABLE payment_requests ADD COLUMN risk text CHECK (risk IN ('allowed', 'review', 'unchecked', 'denied'));
COMMENT ON COLUMN payment_requests.risk IS 'what the fraud check said; unchecked where it did not answer and the amount was small';
ALTER TABLE merchant_currencies ADD COLUMN fallback_limit_minor bigint NOT NULL DEFAULT 0 CHECK (fallback_limit_minor >= 0);

GRANT SELECT ON psp_routes, psp_states, workers, psp_inbox TO florin_app, florin_console;
GRANT SELECT ON psp_routes, psp_states, workers TO florin_read;
GRANT SELECT (merchant_id, psp_account_id, event_id, type, state, attempts, last_error, due_at, received_at, updated_at)
    ON psp_inbox TO florin_read;
GRANT SELECT (name, enabled, concurrency_max, requests_per_second_max) ON psp_accounts TO florin_read;
GRANT INSERT, UPDATE ON psp_states TO florin_app;
GRANT INSERT, UPDATE, DELETE ON workers, psp_inbox TO florin_app;
GRANT INSERT, UPDATE ON psp_inbox TO florin_console;
GRANT INSERT, UPDATE, DELETE ON psp_routes TO florin_console;
