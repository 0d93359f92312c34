"""The codes of problem documents, with cause and cure, for the documentation. A test compares them with the code."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProblemCode:
    """A code, the statuses with which it comes, why, and what to do."""

    code: str
    statuses: tuple[int, ...]
    cause: str
    cure: str


_SAME_KEY = "Repeat it with the same key."

PROBLEM_CODES: Sequence[ProblemCode] = (
    ProblemCode("malformed_json", (400,), "The body is not JSON.", "Send one JSON object in UTF-8."),
    ProblemCode("malformed_request", (400,), "The request cannot be parsed.", "Correct what `detail` names."),
    ProblemCode("duplicate_name", (400,), "A JSON object has a name twice.", "Send each name once."),
    ProblemCode("invalid_signature", (400,), "A PSP's webhook has a wrong signature.", "Check the account's webhook secret."),
    ProblemCode(
        "idempotency_key_missing", (400,), "The request changes something and has no `Idempotency-Key`.", "Send a new UUID."
    ),
    ProblemCode("idempotency_key_invalid", (400,), "The key is empty, too long, ill-formed or given twice.", "Send a UUID."),
    ProblemCode("api_key_missing", (401,), "There is no `Authorization: Bearer` header.", "Send your API key in it."),
    ProblemCode("api_key_expired", (401,), "The key's time is over.", "Use a current key; rotate keys before they end."),
    ProblemCode("api_key_unknown", (401,), "The key is unknown or was revoked.", "Use a current key: `florin merchant key`."),
    ProblemCode("unauthenticated", (401,), "The caller is not known.", "Send your API key."),
    ProblemCode(
        "ticket_invalid", (401,), "The stream's ticket is unknown, used, expired or for another origin.", "Get a new ticket."
    ),
    ProblemCode("ticket_scope", (401,), "Types or a consumer were given beside a ticket.", "Ask for them with the ticket."),
    ProblemCode("metrics_token_wrong", (401,), "`/metrics` needs its token.", "Send `FLORIN_METRICS_TOKEN` as Bearer."),
    ProblemCode(
        "declined",
        (402,),
        "The payment was declined; `decline_code` says why. `payment` is its final state.",
        "Ask the customer for another card, with a new key.",
    ),
    ProblemCode("scope_missing", (403,), "The key is restricted and lacks the scope that `detail` names.", "Use another key."),
    ProblemCode("network_not_allowed", (403,), "The key may not be used from this address.", "Ask the operator."),
    ProblemCode("payments_stopped", (403,), "New payments of this merchant are stopped.", "Ask the operator."),
    ProblemCode("forbidden", (403,), "The path is no websocket, or the caller may not do this.", "Check the path."),
    ProblemCode("not_found", (404,), "Nothing with this name is yours.", "Check the identifier and the key's merchant."),
    ProblemCode("no_such_route", (404,), "There is no such path.", "Take the one that `detail` suggests."),
    ProblemCode("method_not_allowed", (405,), "The path has other methods.", "Take one of `Allow`."),
    ProblemCode(
        "batch_deadline_passed", (408,), "The batch's deadline passed.", "Resume it with `resume_token`: nothing is done twice."
    ),
    ProblemCode("body_too_late", (408,), "The body did not arrive in time. Nothing was done.", _SAME_KEY),
    ProblemCode(
        "idempotency_key_in_flight", (409,), "The first request with this key is under way.", "Repeat it after `Retry-After`."
    ),
    ProblemCode(
        "order_has_live_payment",
        (409,),
        "The order has a payment that is not settled yet, and the merchant allows one.",
        "Read the payment by `order_id`; cancel it to start over.",
    ),
    ProblemCode(
        "order_is_paid", (409,), "The order is paid, and the merchant lets no order be paid twice.", "Read it by `order_id`."
    ),
    ProblemCode("not_capturable", (409,), "The payment's state allows no capture.", "Read the payment."),
    ProblemCode("not_cancelable", (409,), "The payment's state allows no cancellation.", "Refund what is paid."),
    ProblemCode("being_opened", (409,), "The payment is being opened at the PSP.", "Repeat it after `Retry-After`."),
    ProblemCode("not_refundable", (409,), "The payment has no money to refund.", "Read the payment."),
    ProblemCode("refund_too_large", (409,), "More than what is left was asked for.", "Refund at most what `detail` names."),
    ProblemCode(
        "insufficient_balance",
        (409,),
        "The wallet does not hold enough for this refund.",
        "Wait for payments, or ask the operator.",
    ),
    ProblemCode("refund_mismatch", (409,), "A refund made at the PSP does not fit its payment.", "Ask the operator."),
    ProblemCode("key_rotated", (409,), "The API key was rotated before.", "Rotate the key that has taken its place."),
    ProblemCode("key_not_valid", (409,), "The API key was revoked or has expired.", "Ask the operator for a new one."),
    ProblemCode("too_many_missed", (409,), "Too much was kept to be sent together.", "Give `missed: skip`, and replay ranges."),
    ProblemCode("conflict", (409,), "The current state does not allow this.", "Read the current state."),
    ProblemCode("batch_running", (409,), "The batch is running.", "Wait for its end, or stop it."),
    ProblemCode("batch_not_resumable", (409,), "The batch is done, or too old.", "Run the rest as a new batch."),
    ProblemCode("batch_resumed", (409,), "The batch was resumed since.", "Read it for its latest `resume_token`."),
    ProblemCode("too_many_batches", (409,), "Too many batches are running.", "Wait until one has ended."),
    ProblemCode("no_receipt", (409,), "The payment has moved no money.", "Ask again once it is paid."),
    ProblemCode("receipt_not_ready", (409,), "The receipt is being made.", "Repeat it after `Retry-After`."),
    ProblemCode("too_many_endpoints", (409,), "The merchant has the most endpoints it may have.", "Delete one."),
    ProblemCode("endpoint_deleted", (409,), "The endpoint that this key created was deleted.", "Use a new key."),
    ProblemCode("endpoint_changed", (409,), "The endpoint was changed since this key rotated it.", "Use a new key."),
    ProblemCode("endpoint_disabled", (409,), "The endpoint is disabled.", "Enable it with PATCH."),
    ProblemCode("secret_rotating", (409,), "Two secrets are valid already.", "Wait, or rotate with `overlap_seconds` 0."),
    ProblemCode("too_many_consumers", (409,), "The merchant has the most consumers it may have.", "Delete one."),
    ProblemCode("body_too_large", (413,), "The body is larger than this path takes.", "Split it."),
    ProblemCode("unsupported_encoding", (415,), "The body has a `Content-Encoding`.", "Send it plain."),
    ProblemCode("invalid_field", (422,), "A field is unknown, missing or wrong; `path` names it.", "Correct it."),
    ProblemCode("invalid_money", (422,), "An amount or currency that no payment can have.", "Send minor units and ISO 4217."),
    ProblemCode("invalid_amount", (422,), "The amount is not between 1 and what is possible.", "Correct it."),
    ProblemCode("invalid_query", (422,), "A parameter of the query is unknown, repeated or wrong.", "Correct it."),
    ProblemCode(
        "invalid_items", (422,), "Items of the batch are wrong; `errors` lists them. Nothing was begun.", "Correct them."
    ),
    ProblemCode("repeated_item", (422,), "Two items of a batch are for the same order or payment.", "Keep one."),
    ProblemCode(
        "card_number_refused", (422,), "A field holds what looks like a card number. It was not stored.", "Send the PSP's token."
    ),
    ProblemCode("idempotency_key_reused", (422,), "The key was used for a different request.", "Use a new key."),
    ProblemCode(
        "token_unknown",
        (422,),
        "The PSP does not know the token. Nothing was charged, and the payment is canceled.",
        "Get a new token from the customer, and use a new key.",
    ),
    ProblemCode("no_provider", (422,), "No account of the merchant takes such a payment.", "Check currency and `psp_account`."),
    ProblemCode(
        "return_host_not_allowed",
        (422,),
        "The host of `return_url` is not one of the merchant's.",
        "Ask the operator to allow it.",
    ),
    ProblemCode("resume_token_wrong", (422,), "The token belongs to another batch.", "Read the batch for its token."),
    ProblemCode("invalid_event_type", (422,), "There is no such event type.", "Take one of those below."),
    ProblemCode("invalid_consumer", (422,), "The consumer's name is ill-formed.", "Use letters, digits, dots and hyphens."),
    ProblemCode("invalid_webhook_url", (422,), "Webhooks are not sent to this URL.", "Use a public https URL."),
    ProblemCode("range_too_large", (422,), "The replay has too many events.", "Replay it in parts."),
    ProblemCode("unprocessable", (422,), "The request breaks a rule.", "Correct what `detail` names."),
    ProblemCode(
        "websocket_required", (426,), "The path is a websocket.", "Connect with a websocket client, or read `/v1/events`."
    ),
    ProblemCode("rate_limited", (429,), "The key or the merchant sent too many requests.", "Repeat it after `Retry-After`."),
    ProblemCode("too_many_in_flight", (429,), "Too many of the merchant's requests are under way.", "Send fewer at once."),
    ProblemCode(
        "internal_error",
        (500,),
        "Florin failed. What was stored is settled.",
        "Repeat it with the same key; report `request_id`.",
    ),
    ProblemCode("psp_rejected", (502,), "The PSP refused the request.", "Read `detail`; ask the operator."),
    ProblemCode(
        "psp_unreachable",
        (502,),
        "The PSP could not be reached. Nothing was charged.",
        "Repeat it with the same key; with a new one if `payment` is CANCELED.",
    ),
    ProblemCode("psp_error", (502,), "The PSP failed.", "Read the payment: it is settled later."),
    ProblemCode("overloaded", (503,), "A limit is reached. Nothing was done.", "Repeat it after `Retry-After`, same key."),
    ProblemCode(
        "database_unavailable",
        (503,),
        "The database is away. Nothing was acknowledged.",
        "Repeat it after `Retry-After`, same key.",
    ),
    ProblemCode("psp_unavailable", (503,), "No PSP takes payments at the moment. Nothing was done.", _SAME_KEY),
    ProblemCode("psp_busy", (503,), "The PSP takes no more requests at the moment.", "Repeat it after `Retry-After`."),
    ProblemCode(
        "fraud_check_unavailable", (503,), "The fraud check does not answer. Nothing was charged.", "Try again with a new key."
    ),
    ProblemCode(
        "psp_timeout",
        (504,),
        "The PSP did not answer in time: the customer may have been charged.",
        "Repeat it with the same key, or wait for the event. Never charge with a new key.",
    ),
)
