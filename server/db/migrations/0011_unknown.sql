-- Finds what is unknown at one PSP account, among all that is due some time. Expands only.

CREATE INDEX payment_requests_unknown ON payment_requests (psp_account_id, merchant_id, id)
    WHERE due_at IS NOT NULL AND (status = 'UNKNOWN' OR pending_id IS NOT NULL);
CREATE INDEX refunds_unknown ON refunds (psp_account_id, merchant_id, id) WHERE due_at IS NOT NULL AND status = 'UNKNOWN';
