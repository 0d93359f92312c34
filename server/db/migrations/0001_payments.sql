-- The main job: merchants, payments and their operations, idempotency keys, ledger, wallets, events and deliveries.
-- Rules (held by tests/server/test_database.py): every key of a merchant's table leads with merchant_id, so that the schema shards
-- by merchant unchanged; ids are UUIDv7 made by the client; statuses repeat the core's enums. The tables of the payment path
-- carry no foreign keys: their rows are written together by one statement, and `florin doctor` looks for orphans.

CREATE TABLE psp_accounts (
    id                  uuid PRIMARY KEY,
    psp                 text NOT NULL CHECK (psp IN ('sandbox')),
    mode                text NOT NULL CHECK (mode IN ('test', 'live')),
    base_url            text NOT NULL,
    sealed_api_key      bytea NOT NULL,
    sealed_webhook_secret bytea NOT NULL,
    created_at          timestamptz NOT NULL,
    CONSTRAINT live_refuses_the_sandbox CHECK (NOT (psp = 'sandbox' AND mode = 'live'))
);
COMMENT ON TABLE psp_accounts IS 'reference table: few rows, shared by all merchants, keyed by id alone';

CREATE TABLE merchants (
    merchant_id         uuid PRIMARY KEY,
    name                text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    mode                text NOT NULL CHECK (mode IN ('test', 'live')),
    psp_account_id      uuid NOT NULL,
    created_at          timestamptz NOT NULL
);

CREATE TABLE api_keys (
    merchant_id         uuid NOT NULL REFERENCES merchants,
    id                  uuid NOT NULL,
    secret_sha256       bytea NOT NULL CHECK (length(secret_sha256) = 32),
    hint                text NOT NULL,
    created_at          timestamptz NOT NULL,
    revoked_at          timestamptz,
    PRIMARY KEY (merchant_id, id),
    UNIQUE (merchant_id, secret_sha256)
);

CREATE TABLE webhook_endpoints (
    merchant_id         uuid NOT NULL REFERENCES merchants,
    id                  uuid NOT NULL,
    url                 text NOT NULL,
    sealed_secret       bytea NOT NULL,
    enabled             boolean NOT NULL DEFAULT true,
    created_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, id)
);

CREATE TABLE payment_requests (
    merchant_id         uuid NOT NULL,
    id                  uuid NOT NULL,
    psp_account_id      uuid NOT NULL,
    operation_id        uuid NOT NULL,
    order_id            text NOT NULL,
    amount_minor        bigint NOT NULL CHECK (amount_minor > 0),
    currency            text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    status              text NOT NULL
        CHECK (status IN ('PENDING', 'AUTHORIZED', 'SUCCEEDED', 'DECLINED', 'EXPIRED', 'CANCELED', 'UNKNOWN')),
    version             integer NOT NULL CHECK (version >= 1),
    reference           text,
    payment_url         text,
    return_url          text,
    description         text,
    idempotency_key     text NOT NULL,
    captured_minor      bigint NOT NULL DEFAULT 0,
    late                boolean NOT NULL DEFAULT false,
    suspended           boolean NOT NULL DEFAULT false,
    decline_code        text,
    did_check_again     boolean NOT NULL DEFAULT false,
    checks              integer NOT NULL DEFAULT 0,
    expires_at          timestamptz NOT NULL,
    due_at              timestamptz,
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT succeeded_exactly_with_money CHECK ((status = 'SUCCEEDED') = (captured_minor > 0)),
    CONSTRAINT captured_at_most_the_amount CHECK (captured_minor BETWEEN 0 AND amount_minor),
    CONSTRAINT declined_only_after_a_second_look CHECK (status <> 'DECLINED' OR did_check_again),
    CONSTRAINT final_is_never_due CHECK (due_at IS NULL OR status IN ('PENDING', 'UNKNOWN'))
);
CREATE INDEX payment_requests_due ON payment_requests (due_at) WHERE due_at IS NOT NULL;
COMMENT ON COLUMN payment_requests.due_at IS 'when a job must look next; a claim moves it a lease ahead on the database''s clock';

CREATE TABLE payment_logs (
    merchant_id         uuid NOT NULL,
    id                  uuid NOT NULL,
    payment_id          uuid NOT NULL,
    version             integer NOT NULL,
    source              text NOT NULL,
    kind                text NOT NULL,
    from_status         text,
    to_status           text NOT NULL,
    code                text,
    reference           text,
    created_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, payment_id, version)
);

CREATE TABLE psp_operations (
    merchant_id         uuid NOT NULL,
    id                  uuid NOT NULL,
    payment_id          uuid NOT NULL,
    psp_account_id      uuid NOT NULL,
    kind                text NOT NULL CHECK (kind IN ('intent')),
    amount_minor        bigint NOT NULL,
    currency            text NOT NULL,
    state               text NOT NULL CHECK (state IN ('SENT', 'DONE', 'LOST', 'FAILED')),
    first_sent_at       timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, payment_id, id)
);

CREATE TABLE idempotency_keys (
    merchant_id         uuid NOT NULL,
    key                 text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    fingerprint         bytea NOT NULL CHECK (length(fingerprint) = 32),
    payment_id          uuid NOT NULL,
    in_flight_until     timestamptz NOT NULL,
    reply_status        integer,
    reply_body          text,
    created_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, key)
);

CREATE TABLE psp_events (
    merchant_id         uuid NOT NULL,
    psp_account_id      uuid NOT NULL,
    event_id            text NOT NULL,
    payment_id          uuid NOT NULL,
    type                text NOT NULL,
    outcome             text NOT NULL CHECK (outcome IN ('applied', 'nothing_new', 'ignored', 'unmatched')),
    received_at         timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, payment_id, psp_account_id, event_id)
);

CREATE TABLE ledger_entries (
    merchant_id         uuid NOT NULL,
    transfer_id         uuid NOT NULL,
    kind                text NOT NULL,
    account             text NOT NULL,
    payment_id          uuid NOT NULL,
    currency            text NOT NULL,
    amount_minor        bigint NOT NULL CHECK (amount_minor <> 0),
    created_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, transfer_id, kind, account)
);

CREATE TABLE wallets (
    merchant_id         uuid NOT NULL,
    currency            text NOT NULL,
    kind                text NOT NULL CHECK (kind IN ('merchant_available', 'merchant_pending')),
    balance_minor       bigint NOT NULL,
    updated_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, currency, kind)
) WITH (fillfactor = 50);

CREATE VIEW wallet_adjustments AS
    SELECT merchant_id, currency, account AS kind, transfer_id, kind AS reason, payment_id, amount_minor, created_at
      FROM ledger_entries
     WHERE account IN ('merchant_available', 'merchant_pending');

CREATE TABLE merchant_sequences (
    merchant_id         uuid PRIMARY KEY,
    last_seq            bigint NOT NULL CHECK (last_seq > 0)
) WITH (fillfactor = 50);

CREATE TABLE events (
    merchant_id         uuid NOT NULL,
    seq                 bigint NOT NULL,
    id                  uuid NOT NULL,
    type                text NOT NULL,
    payment_id          uuid NOT NULL,
    data                text NOT NULL,
    created_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, seq)
);

CREATE TABLE deliveries (
    merchant_id         uuid NOT NULL,
    endpoint_id         uuid NOT NULL,
    event_seq           bigint NOT NULL,
    state               text NOT NULL CHECK (state IN ('PENDING', 'DELIVERED', 'DEAD')),
    attempts            integer NOT NULL CHECK (attempts >= 0),
    due_at              timestamptz,
    last_status         integer,
    last_error          text,
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, endpoint_id, event_seq),
    CONSTRAINT due_exactly_while_pending CHECK ((state = 'PENDING') = (due_at IS NOT NULL))
) WITH (fillfactor = 70);
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE due_at IS NOT NULL;
COMMENT ON COLUMN deliveries.due_at IS 'when to try next; a claim moves it a lease ahead, and attempts is the fencing token';

CREATE TABLE findings (
    merchant_id         uuid NOT NULL,
    id                  uuid NOT NULL,
    kind                text NOT NULL,
    payment_id          uuid NOT NULL,
    detail              text NOT NULL,
    created_at          timestamptz NOT NULL,
    resolved_at         timestamptz,
    PRIMARY KEY (merchant_id, id)
);

CREATE INDEX findings_of_payment ON findings (merchant_id, payment_id);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER ledger_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_logs_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON payment_logs
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
