"""The shapes of what you send, for type checkers: items of a batch and changes of a webhook endpoint."""

from typing import Literal, NotRequired, TypedDict


class NewCharge(TypedDict):
    """Charge a token of the PSP. `amount` is in minor units."""

    type: Literal["charge"]
    amount: int
    currency: str
    order_id: str
    token: str
    psp_account: NotRequired[str]
    description: NotRequired[str]
    capture: NotRequired[Literal["automatic", "manual"]]
    statement_descriptor: NotRequired[str]
    metadata: NotRequired[dict[str, str]]


class NewVerification(TypedDict):
    """Ask the PSP for the current state of a payment."""

    type: Literal["verify"]
    payment_id: str


class NewCapture(TypedDict):
    """Capture an authorized payment, or `amount` of it."""

    type: Literal["capture"]
    payment_id: str
    amount: NotRequired[int]


class NewRefund(TypedDict):
    """Refund all that is left of a payment, or `amount` of it."""

    type: Literal["refund"]
    payment_id: str
    amount: NotRequired[int]
    reason: NotRequired[str]


NewItem = NewCharge | NewVerification | NewCapture | NewRefund


class EndpointChanges(TypedDict, total=False):
    """The fields of a webhook endpoint that can be changed. `requests_per_second_max=None` removes that limit."""

    url: str
    mode: Literal["parallel", "ordered"]
    event_types: list[str]
    description: str
    requests_per_second_max: int | None
    concurrency_max: int
    enabled: bool
    paused: bool
    missed: Literal["send", "skip"]
