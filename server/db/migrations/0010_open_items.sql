-- Items of batches that were open when their batch ended are settled later. Expands only.

CREATE INDEX batch_items_open ON batch_items (merchant_id, batch_id, number) WHERE status IN ('UNKNOWN', 'PENDING');

GRANT SELECT (description) ON webhook_endpoints TO florin_read; -- the doctor looks for card numbers
