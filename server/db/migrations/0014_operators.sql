-- Operators and their sessions, findings as work items, requests that need two operators, scopes of API keys, pauses of endpoints.
-- Expands only.

CREATE TABLE operators (
    id                  uuid PRIMARY KEY,
    name                text NOT NULL UNIQUE CHECK (name ~ '^[a-z][a-z0-9._-]{0,62}$'),
    role                text NOT NULL CHECK (role IN ('viewer', 'support', 'finance', 'admin')),
    is_service          boolean NOT NULL DEFAULT false,
    password_hash       text,
    sealed_totp_secret  bytea,
    totp_step           bigint NOT NULL DEFAULT 0,
    key_sha256          bytea UNIQUE CHECK (length(key_sha256) = 32),
    failures            integer NOT NULL DEFAULT 0,
    locked_until        timestamptz,
    disabled_at         timestamptz,
    last_seen_at        timestamptz,
    created_at          timestamptz NOT NULL,
    CONSTRAINT a_service_has_a_key_and_nothing_else CHECK (
        CASE WHEN is_service THEN key_sha256 IS NOT NULL AND password_hash IS NULL AND sealed_totp_secret IS NULL
             ELSE key_sha256 IS NULL AND password_hash IS NOT NULL AND sealed_totp_secret IS NOT NULL END),
    CONSTRAINT a_service_moves_no_money CHECK (NOT is_service OR role IN ('viewer', 'support'))
);
COMMENT ON TABLE operators IS 'reference table: few rows, of people and programs that operate this instance, not of merchants';
COMMENT ON COLUMN operators.totp_step IS 'the last interval of 30 s whose code was used: a code counts once';

CREATE TABLE operator_recovery_codes (
    operator_id         uuid NOT NULL REFERENCES operators,
    code_sha256         bytea NOT NULL CHECK (length(code_sha256) = 32),
    used_at             timestamptz,
    PRIMARY KEY (operator_id, code_sha256)
);
COMMENT ON TABLE operator_recovery_codes IS 'reference table: each code replaces a TOTP code once';

CREATE TABLE operator_sessions (
    token_sha256        bytea PRIMARY KEY CHECK (length(token_sha256) = 32),
    operator_id         uuid NOT NULL REFERENCES operators,
    confirmed_until     timestamptz,
    created_at          timestamptz NOT NULL,
    expires_at          timestamptz NOT NULL,
    ended_at            timestamptz
);
COMMENT ON TABLE operator_sessions IS 'reference table: the sessions of operators, of which workers know nothing';
COMMENT ON COLUMN operator_sessions.confirmed_until IS 'until then a TOTP code that was given for moving money counts for the next such act';

ALTER TABLE audit_log
    ADD COLUMN operator_id      uuid,
    ADD COLUMN payment_id       uuid,
    ADD COLUMN subject          text;
COMMENT ON COLUMN audit_log.subject IS 'what the act was on, as its public id: a finding, a request, a payout, a key';
CREATE INDEX audit_log_of_payment ON audit_log (merchant_id, payment_id) WHERE payment_id IS NOT NULL;

ALTER TABLE findings
    ADD COLUMN state            text NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'TAKEN', 'EXPLAINED', 'FIXED')),
    ADD COLUMN operator         text,
    ADD COLUMN note             text,
    ADD COLUMN state_at         timestamptz,
    ADD CONSTRAINT closed_exactly_when_resolved CHECK ((state IN ('EXPLAINED', 'FIXED')) = (resolved_at IS NOT NULL)) NOT VALID;

CREATE TABLE operator_requests (
    merchant_id         uuid NOT NULL,
    id                  uuid NOT NULL,
    kind                text NOT NULL,
    document            text NOT NULL,
    payment_id          uuid,
    reason              text NOT NULL CHECK (length(reason) BETWEEN 1 AND 500),
    state               text NOT NULL CHECK (state IN ('REQUESTED', 'APPROVED', 'DONE', 'FAILED', 'WITHDRAWN', 'EXPIRED')),
    needs_approval      boolean NOT NULL,
    requested_by        uuid NOT NULL,
    requested_by_name   text NOT NULL,
    approved_by         uuid,
    approved_by_name    text,
    result              text,
    created_at          timestamptz NOT NULL,
    expires_at          timestamptz NOT NULL,
    updated_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT four_eyes CHECK (approved_by <> requested_by),
    CONSTRAINT what_surely_posts_needs_approval CHECK (needs_approval OR kind IN ('resolve_payment', 'resolve_refund', 'refund')),
    CONSTRAINT carried_out_only_when_approved CHECK (
        state NOT IN ('APPROVED', 'DONE') OR NOT needs_approval OR approved_by IS NOT NULL)
);
COMMENT ON TABLE operator_requests IS 'what operators want done to money; a worker carries out what needs no approval or has it';
CREATE INDEX operator_requests_open ON operator_requests (expires_at) WHERE state IN ('REQUESTED', 'APPROVED');
CREATE INDEX operator_requests_of_payment ON operator_requests (merchant_id, payment_id) WHERE payment_id IS NOT NULL;

ALTER TABLE payment_requests
    ADD COLUMN is_operators_word boolean NOT NULL DEFAULT false,
    ADD COLUMN from_suspense    boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN payment_requests.is_operators_word IS 'the status is what operators said, not what the PSP said, which would count more';
ALTER TABLE refunds ADD COLUMN is_operators_word boolean NOT NULL DEFAULT false;

ALTER TABLE payouts
    ADD COLUMN requested_by_id  uuid,
    ADD COLUMN approved_by_id   uuid,
    ADD CONSTRAINT approved_by_another_operator CHECK (approved_by_id <> requested_by_id);
CREATE INDEX payouts_unapproved ON payouts (created_at) WHERE status = 'PENDING' AND approved_by IS NULL;

ALTER TABLE api_keys
    ADD COLUMN name             text NOT NULL DEFAULT '' CHECK (length(name) <= 100),
    ADD COLUMN scopes           text[] NOT NULL DEFAULT '{all}' CHECK (cardinality(scopes) BETWEEN 1 AND 10),
    ADD COLUMN networks         text[] NOT NULL DEFAULT '{}' CHECK (cardinality(networks) <= 50),
    ADD COLUMN expires_at       timestamptz,
    ADD COLUMN last_used_at     timestamptz,
    ADD COLUMN replaced_by      uuid,
    ADD COLUMN warned_at        timestamptz;
COMMENT ON COLUMN api_keys.networks IS 'the networks from which the key may be used; empty: any';
COMMENT ON COLUMN api_keys.last_used_at IS 'to the minute';
COMMENT ON COLUMN api_keys.replaced_by IS 'the key that a rotation has made, until whose overlap has passed this one is valid';
CREATE INDEX api_keys_expiring ON api_keys (expires_at) WHERE expires_at IS NOT NULL AND revoked_at IS NULL;

-- The time of the last use changes all the time, and what is noted about a warning is no setting.
DROP TRIGGER settings_change ON api_keys;
CREATE TRIGGER settings_change AFTER INSERT OR DELETE OR UPDATE OF
    secret_sha256, revoked_at, requests_per_second_max, name, scopes, networks, expires_at, replaced_by
    ON api_keys FOR EACH STATEMENT EXECUTE FUNCTION note_settings_change();

ALTER TABLE webhook_endpoints
    DROP CONSTRAINT webhook_endpoints_disabled_reason_check,
    ADD CONSTRAINT webhook_endpoints_disabled_reason_check
        CHECK (disabled_reason IN ('merchant', 'paused', 'gone', 'failing', 'deleted')),
    ADD COLUMN kept_from_seq    bigint;
COMMENT ON COLUMN webhook_endpoints.kept_from_seq IS 'the first event that was kept for an endpoint while it was paused or disabled';

ALTER TABLE workers ADD COLUMN version text;
COMMENT ON COLUMN workers.version IS 'of the code that the worker runs';

GRANT SELECT ON operators, operator_recovery_codes, operator_sessions, operator_requests TO florin_console;
GRANT INSERT, UPDATE ON operators, operator_recovery_codes, operator_sessions TO florin_console;
GRANT INSERT ON operator_requests TO florin_console;
GRANT UPDATE (state, approved_by, approved_by_name, result, updated_at) ON operator_requests TO florin_console;
GRANT SELECT (id, name, role, is_service, locked_until, disabled_at, last_seen_at, created_at) ON operators TO florin_read, florin_app;
GRANT SELECT ON operator_requests TO florin_app, florin_read;
GRANT UPDATE (state, result, updated_at) ON operator_requests TO florin_app;
GRANT INSERT ON events, deliveries TO florin_console;
GRANT SELECT (name, scopes, networks, expires_at, last_used_at, replaced_by) ON api_keys TO florin_read;
GRANT INSERT ON api_keys TO florin_app;
GRANT UPDATE (last_used_at, warned_at, expires_at, replaced_by) ON api_keys TO florin_app;
GRANT SELECT (kept_from_seq) ON webhook_endpoints TO florin_read;
