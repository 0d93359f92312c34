-- Workers keep keys, merchants, endpoints and PSP accounts until one of them changes, instead of reading them again. Expands only.

CREATE TABLE settings_changes (
    id                  xid8 PRIMARY KEY DEFAULT pg_current_xact_id(),
    changed_at          timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE settings_changes IS 'reference table: the transactions that changed settings which workers cache; a worker asks for those that its last snapshot did not show, and an hour later they are pruned';

GRANT SELECT, INSERT, DELETE ON settings_changes TO florin_app;
GRANT SELECT, INSERT ON settings_changes TO florin_console;
GRANT SELECT ON settings_changes TO florin_read;

CREATE FUNCTION note_settings_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO settings_changes DEFAULT VALUES ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

CREATE TRIGGER settings_change AFTER INSERT OR UPDATE OR DELETE ON merchants FOR EACH STATEMENT EXECUTE FUNCTION note_settings_change();
CREATE TRIGGER settings_change AFTER INSERT OR UPDATE OR DELETE ON merchant_currencies FOR EACH STATEMENT EXECUTE FUNCTION note_settings_change();
CREATE TRIGGER settings_change AFTER INSERT OR UPDATE OR DELETE ON api_keys FOR EACH STATEMENT EXECUTE FUNCTION note_settings_change();
CREATE TRIGGER settings_change AFTER INSERT OR UPDATE OR DELETE ON psp_accounts FOR EACH STATEMENT EXECUTE FUNCTION note_settings_change();
CREATE TRIGGER settings_change AFTER INSERT OR UPDATE OR DELETE ON psp_routes FOR EACH STATEMENT EXECUTE FUNCTION note_settings_change();
-- The lease of an ordered endpoint, and what deliveries note about its health, change all the time and are no settings.
CREATE TRIGGER settings_change AFTER INSERT OR DELETE OR UPDATE OF
    url, mode, event_types, requests_per_second_max, concurrency_max, enabled, disabled_reason, sealed_secret, sealed_old_secret,
    old_secret_until
    ON webhook_endpoints FOR EACH STATEMENT EXECUTE FUNCTION note_settings_change();
