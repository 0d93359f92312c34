-- The whole life of a payment: captures, voids and refunds; terms, fees and settlement delays; disputes and payouts; the ledger's own
-- sequence and its hash chain; what operators did. Expands only: workers of the version before go on while this is applied, which
-- is what the defaults and the trigger that numbers their ledger entries are for.

ALTER TABLE merchants
    ADD COLUMN accepts_payments         boolean NOT NULL DEFAULT true,
    ADD COLUMN one_live_payment_per_order boolean NOT NULL DEFAULT false,
    ADD COLUMN statement_descriptor     text CHECK (statement_descriptor ~ '^[ -~]{1,22}$'),
    ADD COLUMN refunds_late             boolean NOT NULL DEFAULT false,
    ADD COLUMN refunds_fee              boolean NOT NULL DEFAULT false,
    ADD COLUMN settlement_delay_seconds integer NOT NULL DEFAULT 0 CHECK (settlement_delay_seconds BETWEEN 0 AND 31536000);

CREATE TABLE merchant_currencies (
    merchant_id         uuid NOT NULL REFERENCES merchants,
    currency            text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    fee_basis_points    integer NOT NULL DEFAULT 0 CHECK (fee_basis_points BETWEEN 0 AND 10000),
    fee_fixed_minor     bigint NOT NULL DEFAULT 0 CHECK (fee_fixed_minor >= 0),
    negative_limit_minor bigint NOT NULL DEFAULT 0 CHECK (negative_limit_minor >= 0),
    PRIMARY KEY (merchant_id, currency)
);

ALTER TABLE payment_requests
    ADD COLUMN refunded_minor           bigint NOT NULL DEFAULT 0,
    ADD COLUMN disputed_minor           bigint NOT NULL DEFAULT 0,
    ADD COLUMN lost_minor               bigint NOT NULL DEFAULT 0,
    ADD COLUMN capture_before           timestamptz,
    ADD COLUMN pending_id               uuid,
    ADD COLUMN pending_kind             text CHECK (pending_kind IN ('capture', 'void')),
    ADD COLUMN pending_minor            bigint,
    ADD COLUMN pending_since            timestamptz,
    ADD COLUMN is_warned                boolean NOT NULL DEFAULT false,
    ADD COLUMN release_at               timestamptz,
    ADD COLUMN fee_returned_minor       bigint NOT NULL DEFAULT 0 CHECK (fee_returned_minor >= 0),
    ADD COLUMN is_given_back            boolean NOT NULL DEFAULT false,
    ADD COLUMN pending_taken_minor      bigint NOT NULL DEFAULT 0 CHECK (pending_taken_minor >= 0),
    ADD COLUMN capture                  text NOT NULL DEFAULT 'automatic' CHECK (capture IN ('automatic', 'manual')),
    ADD COLUMN is_sync                  boolean NOT NULL DEFAULT false,
    ADD COLUMN live_order_id            text,
    ADD COLUMN statement_descriptor     text,
    ADD COLUMN metadata                 text,
    ADD COLUMN fee_basis_points         integer NOT NULL DEFAULT 0,
    ADD COLUMN fee_fixed_minor          bigint NOT NULL DEFAULT 0,
    ADD COLUMN refunds_fee              boolean NOT NULL DEFAULT false,
    ADD COLUMN settlement_delay_seconds integer NOT NULL DEFAULT 0,
    ADD COLUMN refunds_late             boolean NOT NULL DEFAULT false,
    DROP CONSTRAINT final_is_never_due,
    ADD CONSTRAINT refunds_at_most_the_captured CHECK (refunded_minor BETWEEN 0 AND captured_minor),
    ADD CONSTRAINT disputes_at_most_the_captured
        CHECK (disputed_minor >= 0 AND lost_minor >= 0 AND disputed_minor + lost_minor <= captured_minor),
    ADD CONSTRAINT pending_as_a_whole
        CHECK ((pending_id IS NULL) = (pending_kind IS NULL) AND (pending_id IS NULL) = (pending_since IS NULL)
               AND (pending_minor IS NULL) = (pending_kind IS DISTINCT FROM 'capture')),
    ADD CONSTRAINT capture_of_an_authorization CHECK (pending_kind IS DISTINCT FROM 'capture' OR status = 'AUTHORIZED'),
    ADD CONSTRAINT declined_is_never_due CHECK (due_at IS NULL OR status <> 'DECLINED');
ALTER TABLE payment_requests ALTER COLUMN merchant_id SET (n_distinct = 1); -- beside the id it tells the planner nothing
CREATE INDEX payment_requests_of_order ON payment_requests (merchant_id, order_id, id);
CREATE UNIQUE INDEX one_live_payment_per_order ON payment_requests (merchant_id, live_order_id) WHERE live_order_id IS NOT NULL;
COMMENT ON COLUMN payment_requests.live_order_id IS 'the order while its payment is live, for merchants with one live payment per order';

ALTER TABLE psp_operations
    DROP CONSTRAINT psp_operations_kind_check,
    ADD CONSTRAINT psp_operations_kind_check CHECK (kind IN ('intent', 'charge', 'capture', 'void', 'refund'));

ALTER TABLE idempotency_keys
    ADD COLUMN operation                text NOT NULL DEFAULT 'create'
        CHECK (operation IN ('create', 'capture', 'cancel', 'refund')),
    ADD COLUMN refund_id                uuid,
    ADD COLUMN reply_seq                bigint;
COMMENT ON COLUMN idempotency_keys.reply_seq IS 'the event whose data is the body of the reply, where reply_body is null';
CREATE INDEX idempotency_keys_by_age ON idempotency_keys USING brin (created_at);

-- Rows that are written twice within moments: room for the second version beside the first spares every index an entry.
ALTER TABLE idempotency_keys SET (fillfactor = 50);
ALTER TABLE psp_operations SET (fillfactor = 50);

CREATE TABLE refunds (
    merchant_id         uuid NOT NULL,
    payment_id          uuid NOT NULL,
    id                  uuid NOT NULL,
    psp_account_id      uuid NOT NULL,
    amount_minor        bigint NOT NULL CHECK (amount_minor > 0),
    currency            text NOT NULL,
    status              text NOT NULL CHECK (status IN ('PENDING', 'SUCCEEDED', 'FAILED', 'UNKNOWN')),
    from_pending_minor  bigint NOT NULL CHECK (from_pending_minor >= 0),
    fee_minor           bigint NOT NULL CHECK (fee_minor >= 0),
    reason              text,
    reference           text,
    failure_code        text,
    is_accepted         boolean NOT NULL,
    checks              integer NOT NULL,
    due_at              timestamptz,
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, payment_id, id),
    CONSTRAINT settled_is_never_due CHECK (due_at IS NULL OR status IN ('PENDING', 'UNKNOWN')),
    CONSTRAINT taken_from_the_amount CHECK (from_pending_minor + fee_minor <= amount_minor)
);
CREATE INDEX refunds_due ON refunds (due_at) WHERE due_at IS NOT NULL;

CREATE TABLE payouts (
    merchant_id         uuid NOT NULL,
    id                  uuid NOT NULL,
    amount_minor        bigint NOT NULL CHECK (amount_minor > 0),
    currency            text NOT NULL,
    status              text NOT NULL CHECK (status IN ('PENDING', 'SUCCEEDED', 'FAILED')),
    reference           text,
    failure             text,
    requested_by        text NOT NULL,
    approved_by         text,
    approved_at         timestamptz,
    created_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT paid_only_when_approved CHECK (status <> 'SUCCEEDED' OR approved_by IS NOT NULL),
    CONSTRAINT approved_by_another CHECK (approved_by IS NULL OR approved_by <> requested_by)
);

CREATE TABLE audit_log (
    merchant_id         uuid NOT NULL,
    id                  uuid NOT NULL,
    actor               text NOT NULL,
    action              text NOT NULL,
    detail              text NOT NULL,
    created_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, id)
);
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- The ledger's own sequence: no gap, in the order of commits, one number an entry.

ALTER TABLE merchant_sequences
    DROP CONSTRAINT merchant_sequences_last_seq_check,
    ADD CONSTRAINT merchant_sequences_last_seq_check CHECK (last_seq >= 0),
    ADD COLUMN last_ledger_seq bigint NOT NULL DEFAULT 0;

ALTER TABLE ledger_entries DISABLE TRIGGER ledger_entries_append_only;
ALTER TABLE ledger_entries ADD COLUMN seq bigint;
UPDATE ledger_entries e SET seq = n.seq
  FROM (SELECT merchant_id, transfer_id, kind, account,
               row_number() OVER (PARTITION BY merchant_id ORDER BY created_at, transfer_id, kind, account) AS seq
          FROM ledger_entries) n
 WHERE (e.merchant_id, e.transfer_id, e.kind, e.account) = (n.merchant_id, n.transfer_id, n.kind, n.account);
INSERT INTO merchant_sequences AS s (merchant_id, last_seq, last_ledger_seq)
SELECT merchant_id, 0, max(seq) FROM ledger_entries GROUP BY merchant_id
ON CONFLICT (merchant_id) DO UPDATE SET last_ledger_seq = excluded.last_ledger_seq;
ALTER TABLE ledger_entries ALTER COLUMN seq SET NOT NULL, ALTER COLUMN payment_id DROP NOT NULL;
ALTER TABLE ledger_entries ENABLE TRIGGER ledger_entries_append_only;
CREATE UNIQUE INDEX ledger_entries_seq ON ledger_entries (merchant_id, seq);

CREATE FUNCTION number_ledger_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO merchant_sequences AS s (merchant_id, last_seq, last_ledger_seq) VALUES (NEW.merchant_id, 0, 1)
    ON CONFLICT (merchant_id) DO UPDATE SET last_ledger_seq = s.last_ledger_seq + 1
    RETURNING last_ledger_seq INTO NEW.seq;
    RETURN NEW;
END
$$;
CREATE TRIGGER ledger_entries_number BEFORE INSERT ON ledger_entries
    FOR EACH ROW WHEN (NEW.seq IS NULL) EXECUTE FUNCTION number_ledger_entry();
COMMENT ON TRIGGER ledger_entries_number ON ledger_entries IS 'for workers of the version before; goes when there are none';

CREATE TABLE ledger_chain (
    merchant_id         uuid NOT NULL,
    seq                 bigint NOT NULL CHECK (seq >= 1),
    hash                bytea NOT NULL CHECK (length(hash) = 32),
    created_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, seq)
);
CREATE TRIGGER ledger_chain_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_chain
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
