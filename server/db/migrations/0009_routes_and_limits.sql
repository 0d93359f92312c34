-- Weights that spread payments over several accounts, accounts that know each other's tokens, and limits of a merchant. Expands only.

ALTER TABLE psp_routes ADD COLUMN weight integer CHECK (weight BETWEEN 1 AND 1000);
COMMENT ON COLUMN psp_routes.weight IS 'neighbouring rules with weights share their payments in proportion; null: in the order of position';

ALTER TABLE psp_accounts ADD COLUMN tokens_of uuid;
COMMENT ON COLUMN psp_accounts.tokens_of IS 'the account whose tokens this one knows as well, as with a shared vault; null: only its own';

ALTER TABLE merchants
    ADD COLUMN requests_per_second_max integer CHECK (requests_per_second_max BETWEEN 1 AND 100000),
    ADD COLUMN requests_in_flight_max  integer CHECK (requests_in_flight_max BETWEEN 1 AND 100000);
COMMENT ON COLUMN merchants.requests_per_second_max IS 'requests of all its keys to all workers; null: the default';
COMMENT ON COLUMN merchants.requests_in_flight_max IS 'requests under way in one worker; null: the default';

ALTER TABLE api_keys ADD COLUMN requests_per_second_max integer CHECK (requests_per_second_max BETWEEN 1 AND 100000);
COMMENT ON COLUMN api_keys.requests_per_second_max IS 'requests of this key alone to all workers, within its merchant''s; null: as the merchant''s';

CREATE TABLE merchant_usage (
    merchant_id         uuid NOT NULL,
    worker_id           uuid NOT NULL,
    requests_per_second double precision NOT NULL,
    seen_at             timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, worker_id)
);
COMMENT ON TABLE merchant_usage IS 'what a worker has admitted of a merchant or a key (its id stands in merchant_id) in the last second, where that comes near its rate';

GRANT SELECT (requests_per_second_max) ON api_keys TO florin_read;
GRANT SELECT (tokens_of) ON psp_accounts TO florin_read;
GRANT SELECT ON merchant_usage TO florin_app, florin_console, florin_read;
GRANT INSERT, UPDATE, DELETE ON merchant_usage TO florin_app;
