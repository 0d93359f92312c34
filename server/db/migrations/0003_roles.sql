-- Who may do what. `florin migrate` makes the four roles (server/db/roles.py), owns everything as florin_migrate, and grants here:
-- the workers cannot change or delete what is append-only, the console cannot touch payments, a reader sees no secret.

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'payment_requests', 'idempotency_keys', 'merchant_sequences', 'wallets', 'deliveries', 'payment_logs', 'psp_operations',
        'psp_events', 'refunds', 'payouts', 'ledger_entries', 'ledger_chain', 'events', 'findings', 'audit_log', 'merchants',
        'merchant_currencies', 'api_keys', 'webhook_endpoints', 'psp_accounts', 'schema_migrations'] LOOP
        EXECUTE format('ALTER TABLE public.%I OWNER TO florin_migrate', name);
    END LOOP;
END
$$;
ALTER VIEW wallet_adjustments OWNER TO florin_migrate;
ALTER FUNCTION refuse_change() OWNER TO florin_migrate;
ALTER FUNCTION number_ledger_entry() OWNER TO florin_migrate;
GRANT USAGE ON SCHEMA public TO florin_app, florin_console, florin_read;

GRANT SELECT ON schema_migrations, merchants, merchant_currencies, payment_requests, payment_logs, psp_operations, psp_events,
    idempotency_keys, refunds, payouts, ledger_entries, ledger_chain, wallets, wallet_adjustments, merchant_sequences, events,
    deliveries, findings, audit_log, api_keys, webhook_endpoints, psp_accounts TO florin_app, florin_console;
GRANT INSERT ON payment_logs, ledger_entries, ledger_chain, events, audit_log TO florin_app;
GRANT INSERT, UPDATE ON payment_requests, psp_operations, psp_events, refunds, payouts, wallets, merchant_sequences, deliveries,
    findings TO florin_app;
GRANT INSERT, UPDATE, DELETE ON idempotency_keys TO florin_app;

GRANT INSERT, UPDATE ON merchants, merchant_currencies, api_keys, webhook_endpoints, psp_accounts, payouts, wallets,
    merchant_sequences, findings TO florin_console;
GRANT INSERT ON ledger_entries, audit_log TO florin_console;

GRANT SELECT ON schema_migrations, merchants, merchant_currencies, payment_requests, payment_logs, psp_operations, psp_events,
    idempotency_keys, refunds, payouts, ledger_entries, ledger_chain, wallets, wallet_adjustments, merchant_sequences, events,
    deliveries, findings, audit_log TO florin_read;
GRANT SELECT (merchant_id, id, hint, created_at, revoked_at) ON api_keys TO florin_read;
GRANT SELECT (merchant_id, id, url, enabled, created_at) ON webhook_endpoints TO florin_read;
GRANT SELECT (id, psp, mode, base_url, created_at) ON psp_accounts TO florin_read;
