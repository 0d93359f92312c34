"""Every route of the API, with what the OpenAPI document says of it."""

from collections.abc import Sequence
from typing import Any

from core.payment import Status
from server import shapes
from server.api import bodies
from server.api import notification_bodies as notifications
from server.api.call import Parameter, Route
from server.api.endpoints import EndpointsApi
from server.api.events import EventsApi
from server.api.ledger import LedgerApi
from server.api.operations import OperationsApi
from server.api.payments import PaymentsApi
from server.db.logs import Log
from server.db.wallets import Wallet
from server.shapes import Accepted, Endpoint, Payment, Refund

PAYMENTS, LEDGER, EVENTS, WEBHOOKS = "Payments", "Ledger", "Events", "Webhooks"
_TIME = {"type": "string", "format": "date-time"}
_SEQ = {"type": "integer", "minimum": 0, "maximum": notifications.SEQ_MAX}

LIMIT = Parameter(
    "limit",
    {"type": "integer", "minimum": 1, "maximum": bodies.PAGE_MAX, "default": bodies.PAGE_DEFAULT},
    "how many at most",
)
CURSOR = Parameter("cursor", {"type": "string"}, "`next_cursor` of the page before")
TYPES = Parameter("types", {"type": "string", "example": "payment.*"}, "only these types of events, separated by commas")
AFTER = Parameter("after", _SEQ, "`seq` of the last event that you have")
EPOCH = Parameter("epoch", {"type": "string", "format": "uuid"}, "`epoch` that came with it")
CONSUMER = Parameter("consumer", {"type": "string", "pattern": notifications.CONSUMER_PATTERN}, "begin at its cursor")
PREFER = Parameter(
    "Prefer",
    {"type": "string", "example": "wait=10"},
    f"`wait=N`: reply with the outcome, after N seconds at the latest ({bodies.WAIT_SECONDS_MAX} at most); "
    "`respond-async`: reply 202 at once",
    is_header=True,
)
_PSP_PROBLEMS = (402, 502, 503, 504)
_OF_PAYMENT = "/v1/payments/{payment_id}"
_OF_ENDPOINT = "/v1/webhook-endpoints/{endpoint_id}"


def post(path: str, handle: Any, tag: str, summary: str, replies: dict[int, Any], **more: Any) -> Route:
    """A route that changes something, with a key unless it says that it needs none."""
    more = {"needs_key": True, **more}
    problems = (400, 409, 422, *more.pop("problems", ()))
    return Route(method="POST", path=path, handle=handle, tag=tag, summary=summary, replies=replies, problems=problems, **more)


def get(path: str, handle: Any, tag: str, summary: str, reply: Any, **more: Any) -> Route:
    """A route that only reads."""
    problems = tuple(more.pop("problems", ())) + ((422,) if more.get("parameters") else ())
    replies = reply if isinstance(reply, dict) else {200: reply}
    return Route(method="GET", path=path, handle=handle, tag=tag, summary=summary, replies=replies, problems=problems, **more)


def payment_routes(payments: PaymentsApi) -> Sequence[Route]:
    """`/v1/payments`."""
    filters = (
        Parameter("status", {"type": "string", "enum": [one.value for one in Status]}, "only these"),
        Parameter("order_id", {"type": "string"}, "only this order's"),
        Parameter("created_from", _TIME, "created then or later"),
        Parameter("created_before", _TIME, "created before then"),
        CURSOR,
        LIMIT,
    )
    opened = {201: Payment, 202: Payment}
    return [
        post(
            "/v1/payments",
            payments.create,
            PAYMENTS,
            "Create a payment: a page for the customer, or with `confirm` a charge of the PSP's token",
            opened,
            body=bodies.CreatePayment,
            parameters=[PREFER],
            problems=[403, *_PSP_PROBLEMS],
        ),
        get("/v1/payments", payments.list, PAYMENTS, "List payments, newest first", shapes.Page[Payment], parameters=filters),
        get(_OF_PAYMENT, payments.read, PAYMENTS, "Read a payment", Payment, parameters=[PREFER], problems=[404]),
        get(f"{_OF_PAYMENT}/logs", payments.logs, PAYMENTS, "Every step of a payment", shapes.Whole[Log], problems=[404]),
        get(f"{_OF_PAYMENT}/refunds", payments.refunds, PAYMENTS, "A payment's refunds", shapes.Whole[Refund], problems=[404]),
        Route(
            method="POST",
            path=f"{_OF_PAYMENT}/verify",
            handle=payments.verify,
            tag=PAYMENTS,
            summary="Ask the PSP now how the payment stands",
            replies={200: Payment},
            problems=(404, 409, *_PSP_PROBLEMS),
        ),
    ]


def operation_routes(operations: OperationsApi) -> Sequence[Route]:
    """What is asked of a payment that exists."""
    return [
        post(
            f"{_OF_PAYMENT}/capture",
            operations.capture,
            PAYMENTS,
            "Take what is authorized, or a part of it; the rest is released",
            {200: Payment},
            body=bodies.CapturePayment,
            problems=[404, *_PSP_PROBLEMS],
        ),
        post(
            f"{_OF_PAYMENT}/cancel",
            operations.cancel,
            PAYMENTS,
            "Close the page, or void the authorization",
            {200: Payment},
            body=bodies.CancelPayment,
            problems=[404, *_PSP_PROBLEMS],
        ),
        post(
            f"{_OF_PAYMENT}/refunds",
            operations.refund,
            PAYMENTS,
            "Give back what was taken, or a part of it",
            {201: Refund},
            body=bodies.RefundPayment,
            problems=[404, *_PSP_PROBLEMS],
        ),
    ]


def ledger_routes(ledger: LedgerApi) -> Sequence[Route]:
    """Wallets, statements and receipts."""
    period = (
        Parameter("format", {"type": "string", "enum": ["csv", "jsonl"]}, "`jsonl` unless said"),
        Parameter("from", _TIME, "from then on"),
        Parameter("to", _TIME, "before then"),
        Parameter("currency", {"type": "string", "minLength": 3, "maxLength": 3}, "only in this currency"),
    )
    at = (Parameter("at", _TIME, "as they were then"),)
    return [
        get("/v1/wallets", ledger.wallets, LEDGER, "Balances", shapes.Whole[Wallet], parameters=at),
        get(
            "/v1/statement",
            ledger.statement,
            LEDGER,
            "Every movement of a period, streamed",
            {200: ("application/x-ndjson", "text/csv")},
            parameters=period,
        ),
        get(
            f"{_OF_PAYMENT}/receipt",
            ledger.receipt,
            LEDGER,
            "A signed receipt, as a compact JWS",
            {200: ("application/jose",)},
            problems=[404, 409],
        ),
        get(
            "/v1/receipt-keys",
            ledger.receipt_keys,
            LEDGER,
            "What receipts are verified with, as a JWK set",
            {200: ("application/jwk-set+json",)},
            is_public=True,
        ),
    ]


def endpoint_routes(endpoints: EndpointsApi) -> Sequence[Route]:
    """Webhook endpoints."""
    return [
        post(
            "/v1/webhook-endpoints",
            endpoints.create,
            WEBHOOKS,
            "Add an endpoint; its secret is shown once",
            {201: Endpoint},
            body=notifications.CreateEndpoint,
        ),
        get("/v1/webhook-endpoints", endpoints.list_all, WEBHOOKS, "List endpoints", shapes.Whole[Endpoint]),
        get(_OF_ENDPOINT, endpoints.read, WEBHOOKS, "Read an endpoint", Endpoint, problems=[404]),
        Route(
            method="PATCH",
            path=_OF_ENDPOINT,
            handle=endpoints.change,
            tag=WEBHOOKS,
            summary="Change an endpoint, disable or enable it",
            replies={200: Endpoint},
            body=notifications.ChangeEndpoint,
            problems=(400, 404, 422),
        ),
        Route(
            method="DELETE",
            path=_OF_ENDPOINT,
            handle=endpoints.remove,
            tag=WEBHOOKS,
            summary="Delete an endpoint; what waits for it is dropped",
            replies={204: None},
            problems=(404,),
        ),
    ]


def delivery_routes(endpoints: EndpointsApi) -> Sequence[Route]:
    """What becomes of deliveries, and what can be done about them."""
    one_delivery = f"{_OF_ENDPOINT}/deliveries/{{seq}}"
    states = Parameter("state", {"type": "string", "enum": ["PENDING", "DELIVERED", "DEAD", "DROPPED"]}, "only these")
    return [
        post(
            f"{_OF_ENDPOINT}/rotate-secret",
            endpoints.rotate,
            WEBHOOKS,
            "A new secret; both sign for a while",
            {200: Endpoint},
            body=notifications.RotateSecret,
            problems=[404],
        ),
        post(f"{_OF_ENDPOINT}/test", endpoints.test, WEBHOOKS, "Send a test event", {202: shapes.Event}, problems=[404]),
        post(
            f"{_OF_ENDPOINT}/replay",
            endpoints.replay,
            WEBHOOKS,
            "Send a range of events once more, 50 a second",
            {202: Accepted},
            body=notifications.ReplayEvents,
            problems=[404],
        ),
        get(
            f"{_OF_ENDPOINT}/deliveries",
            endpoints.deliveries,
            WEBHOOKS,
            "The log of deliveries, the latest event first",
            shapes.Page[shapes.Delivery],
            parameters=(states, CURSOR, LIMIT),
            problems=[404],
        ),
        get(one_delivery, endpoints.delivery, WEBHOOKS, "A delivery and its attempts", shapes.DeliveryDetail, problems=[404]),
        post(f"{one_delivery}/resend", endpoints.resend, WEBHOOKS, "Send one event now", {202: Accepted}, problems=[404]),
    ]


def letter_routes(endpoints: EndpointsApi) -> Sequence[Route]:
    """Dead letters."""
    of_endpoint = Parameter("endpoint_id", {"type": "string"}, "only this endpoint's")
    letters = notifications.SelectLetters
    return [
        get(
            "/v1/dead-letters",
            endpoints.dead_letters,
            WEBHOOKS,
            "Deliveries that were given up",
            shapes.Page[shapes.DeadLetter],
            parameters=(of_endpoint, CURSOR, LIMIT),
            problems=[404],
        ),
        post(
            "/v1/dead-letters/retry",
            endpoints.retry_letters,
            WEBHOOKS,
            "Try dead letters again, 50 a second for each endpoint, at most 10,000 at a time",
            {202: Accepted},
            body=letters,
            problems=[404],
        ),
        post(
            "/v1/dead-letters/drop",
            endpoints.drop_letters,
            WEBHOOKS,
            "Give dead letters up for good",
            {202: Accepted},
            body=letters,
            problems=[404],
        ),
    ]


def event_routes(events: EventsApi) -> Sequence[Route]:
    """Events by asking for them, and what the stream needs."""
    wait = Parameter("wait", {"type": "integer", "minimum": 0, "maximum": bodies.WAIT_SECONDS_MAX}, "seconds to wait for one")
    name = "/v1/consumers/{name}"
    return [
        get(
            "/v1/events",
            events.list_all,
            EVENTS,
            "What follows an event, in order; with `wait` as soon as there is something",
            shapes.EventPage,
            parameters=(AFTER, LIMIT, TYPES, wait, CONSUMER, EPOCH),
            problems=[409, 503],
        ),
        get("/v1/events/{seq}", events.read, EVENTS, "Read an event by its number", shapes.Event, problems=[404]),
        get("/v1/consumers", events.consumers, EVENTS, "List consumers", shapes.Whole[shapes.Consumer]),
        Route(
            method="PUT",
            path=name,
            handle=events.place_consumer,
            tag=EVENTS,
            summary="Acknowledge: put a consumer's cursor there, forward or back",
            replies={200: shapes.Consumer},
            body=notifications.PlaceConsumer,
            problems=(400, 409, 422),
        ),
        Route(
            method="DELETE",
            path=name,
            handle=events.remove_consumer,
            tag=EVENTS,
            summary="Forget a consumer",
            replies={204: None},
            problems=(404,),
        ),
        post(
            "/v1/stream/tickets",
            events.ticket,
            EVENTS,
            "A ticket that opens the stream once, within 30 s, from a browser",
            {201: shapes.StreamTicket},
            body=notifications.CreateTicket,
            needs_key=False,
        ),
    ]
