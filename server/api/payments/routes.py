"""The routes of payments, with their OpenAPI descriptions."""

from collections.abc import Sequence

from core.api_keys import KeyScope
from core.payment import Status
from server import resources
from server.api.payments.bodies import CancelPayment, CapturePayment, CreatePayment, RefundPayment
from server.api.payments.handlers import PaymentsApi
from server.api.payments.operations import OperationsApi
from server.api.routing import CURSOR, LIMIT, PAYMENTS, PREFER, TIME, Parameter, Route, get, post
from server.db.payments.log import Log
from server.resources import Payment, Refund

_PSP_PROBLEMS = (402, 502, 503, 504)
PAYMENT_PATH = "/v1/payments/{payment_id}"


def payment_routes(payments: PaymentsApi) -> Sequence[Route]:
    """`/v1/payments`."""
    filters = (
        Parameter("status", {"type": "string", "enum": [one.value for one in Status]}, "only these"),
        Parameter("order_id", {"type": "string"}, "only this order"),
        Parameter("created_from", TIME, "created at this time or later"),
        Parameter("created_before", TIME, "created before this time"),
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
            body=CreatePayment,
            parameters=[PREFER],
            problems=[403, *_PSP_PROBLEMS],
        ),
        get("/v1/payments", payments.list, PAYMENTS, "List payments, newest first", resources.Page[Payment], parameters=filters),
        get(PAYMENT_PATH, payments.read, PAYMENTS, "Read a payment", Payment, parameters=[PREFER], problems=[404]),
        get(
            f"{PAYMENT_PATH}/logs",
            payments.logs,
            PAYMENTS,
            "List every change of a payment",
            resources.Whole[Log],
            problems=[404],
        ),
        get(
            f"{PAYMENT_PATH}/refunds", payments.refunds, PAYMENTS, "A payment's refunds", resources.Whole[Refund], problems=[404]
        ),
        get(f"{PAYMENT_PATH}/refunds/{{refund_id}}", payments.refund, PAYMENTS, "Read a refund", Refund, problems=[404]),
        Route(
            method="POST",
            path=f"{PAYMENT_PATH}/verify",
            handle=payments.verify,
            tag=PAYMENTS,
            summary="Ask the PSP for the payment's current state",
            replies={200: Payment},
            problems=(404, 409, *_PSP_PROBLEMS),
            scope=KeyScope.PAYMENTS_WRITE,
        ),
    ]


def operation_routes(operations: OperationsApi) -> Sequence[Route]:
    """Operations on an existing payment."""
    return [
        post(
            f"{PAYMENT_PATH}/capture",
            operations.capture,
            PAYMENTS,
            "Capture an authorized payment or a part of it; the rest is released",
            {200: Payment},
            body=CapturePayment,
            problems=[404, *_PSP_PROBLEMS],
        ),
        post(
            f"{PAYMENT_PATH}/cancel",
            operations.cancel,
            PAYMENTS,
            "Close the page or void the authorization",
            {200: Payment},
            body=CancelPayment,
            problems=[404, *_PSP_PROBLEMS],
        ),
        post(
            f"{PAYMENT_PATH}/refunds",
            operations.refund,
            PAYMENTS,
            "Refund a payment or a part of it",
            {201: Refund},
            body=RefundPayment,
            scope=KeyScope.REFUNDS_WRITE,
            problems=[404, *_PSP_PROBLEMS],
        ),
    ]
