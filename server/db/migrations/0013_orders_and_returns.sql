-- Orders that are paid once, and the hosts to which a live merchant's customers may return. Expands only.

ALTER TABLE merchants
    ADD COLUMN one_paid_payment_per_order boolean NOT NULL DEFAULT false,
    ADD COLUMN pays_refunded_orders_again boolean NOT NULL DEFAULT false,
    ADD COLUMN return_hosts text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN merchants.return_hosts IS 'the hosts that a return_url in live mode may name; *.example.com stands for all below example.com';

ALTER TABLE payment_requests ADD COLUMN pays_once text CHECK (pays_once IN ('always', 'unless_refunded'));
COMMENT ON COLUMN payment_requests.pays_once IS 'no other payment of its order is accepted once it is paid: ever, or until it is refunded in full; null: others may be paid too';
COMMENT ON COLUMN payment_requests.live_order_id IS 'the order while its payment is live, or paid and pays_once, for merchants with one such payment per order';
