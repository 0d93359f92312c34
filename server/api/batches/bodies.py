"""The bodies of batch requests. A batch is validated as a whole, every item, before anything starts."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import trio

from core.batch import (
    BATCH,
    CONCURRENCY_DEFAULT,
    CONCURRENCY_MAX,
    COUNT_MAX,
    DEADLINE_SECONDS_DEFAULT,
    DEADLINE_SECONDS_MAX,
    BatchStatus,
    ItemResult,
    ItemStatus,
    ItemType,
    resume_token,
)
from core.errors import InvalidId, InvalidItems, ItemError, RequestError, Unprocessable
from core.ids import PAYMENT, REFUND, PaymentId, decode_id, encode_id
from server.api.parsing import LongText, Text, canonical, decode_body, if_given, require_harmless, require_unique_names
from server.api.payments.bodies import METADATA_MAX, CreatePayment, Descriptor, MetadataKey, MetadataValue, new_payment
from server.flows.batches.batch import Standing, Terms
from server.flows.batches.item import Item

TOGETHER = 100
COMMAS_MAX = 100 * COUNT_MAX
"""The maximum number of commas in a body. One with more is refused before it is decoded, because it is not a list of items."""

BODY_BYTES_MAX = 8 * 1_048_576
Concurrency = Annotated[int, msgspec.Meta(ge=1, le=CONCURRENCY_MAX)]
DeadlineSeconds = Annotated[int, msgspec.Meta(ge=1, le=DEADLINE_SECONDS_MAX)]
Amount = Annotated[int, msgspec.Meta(ge=1)]


class ChargeItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="charge"):
    """Charge a PSP's token, as `POST /v1/payments` with `confirm` does. `amount` is in minor units."""

    amount: int
    currency: Annotated[str, msgspec.Meta(min_length=3, max_length=3)]
    order_id: Text
    token: Text
    psp_account: Text | None = None
    description: LongText | None = None
    capture: Literal["automatic", "manual"] = "automatic"
    statement_descriptor: Descriptor | None = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], msgspec.Meta(max_length=METADATA_MAX)] = {}


class VerifyItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="verify"):
    """Ask the PSP how a payment stands."""

    payment_id: str


class CaptureItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="capture"):
    """Capture an authorized payment, or `amount` of it; null is refused."""

    payment_id: str
    amount: Amount | msgspec.UnsetType = msgspec.UNSET


class RefundItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="type", tag="refund"):
    """Refund all that is left of a payment, or `amount` of it; null is refused."""

    payment_id: str
    amount: Amount | msgspec.UnsetType = msgspec.UNSET
    reason: Text | None = None


AnyItem = ChargeItem | VerifyItem | CaptureItem | RefundItem


class CreateBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/batches`: up to 10,000 items, started in this order.

    Items that are not finished after `deadline_seconds` are cut off and can be resumed. `concurrency` is the number of items
    under way at the same time.
    """

    items: Annotated[list[AnyItem], msgspec.Meta(min_length=1, max_length=COUNT_MAX)]
    deadline_seconds: DeadlineSeconds = DEADLINE_SECONDS_DEFAULT
    concurrency: Concurrency = CONCURRENCY_DEFAULT


class ResumeBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/batches/{id}/resume`. Omitted fields stay as they were."""

    resume_token: Annotated[str, msgspec.Meta(max_length=100)]
    deadline_seconds: DeadlineSeconds | None = None
    concurrency: Concurrency | None = None


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A batch whose items are still to be decoded, each by itself, so that all errors are found."""

    items: list[msgspec.Raw]
    deadline_seconds: DeadlineSeconds = DEADLINE_SECONDS_DEFAULT
    concurrency: Concurrency = CONCURRENCY_DEFAULT


_envelope = msgspec.json.Decoder(_Envelope)
_item = msgspec.json.Decoder(AnyItem)
_resume = msgspec.json.Decoder(ResumeBatch)


async def _decode_envelope(body: bytes) -> _Envelope:
    """Decode the envelope. Its items are checked for repeated names one by one, and its own names only if one may be repeated."""
    try:
        envelope = _envelope.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return decode_body(_envelope, body)  # for its error
    if any(body.count(b'"%b"' % name.encode()) > 1 for name in _Envelope.__struct_fields__) or b"\\u" in body:
        await trio.to_thread.run_sync(require_unique_names, body)
    return envelope


async def read_batch(body: bytes) -> tuple[list[Item], Terms, bytes]:
    """Decode a batch: its items, its terms, and the request in canonical form. Raises `Malformed`, `Unprocessable`,
    `InvalidItems`.
    """
    if body.count(b",") > COMMAS_MAX:
        raise Unprocessable(f"a batch must have from 1 to {COUNT_MAX:,} items", code="invalid_field", path="$.items")
    envelope = await _decode_envelope(body)
    if not 1 <= len(envelope.items) <= COUNT_MAX:
        detail = f"a batch has from 1 to {COUNT_MAX:,} items, and this one has {len(envelope.items):,}"
        raise Unprocessable(detail, code="invalid_field", path="$.items")
    items: dict[int, Item] = {}
    bodies: list[AnyItem] = []
    errors: list[ItemError] = []
    for number, raw in enumerate(envelope.items, start=1):
        if number % TOGETHER == 0:
            await trio.lowlevel.checkpoint()  # lets other tasks run
        try:
            bodies.append(decode_body(_item, bytes(raw)))
            items[number] = read_item(bodies[-1])
        except RequestError as error:
            path = f"$.items[{number - 1}]{(error.path or '$')[1:]}"
            errors.append(ItemError(item=number, path=path, code=error.code, detail=str(error)))
    errors += _repetitions(items)
    if errors:
        raise InvalidItems(sorted(errors, key=lambda one: one.item), count=len(envelope.items))
    terms = Terms(deadline_seconds=envelope.deadline_seconds, concurrency=envelope.concurrency)
    return list(items.values()), terms, canonical([bodies, terms])


def read_item(body: AnyItem) -> Item:
    """Decode one item. Raises `Unprocessable`."""
    match body:
        case ChargeItem():
            payment = CreatePayment(**{name: getattr(body, name) for name in body.__struct_fields__}, confirm=True)
            return Item(type=ItemType.CHARGE, charge=new_payment(payment))
        case VerifyItem():
            return Item(type=ItemType.VERIFY, payment_id=_payment_id(body.payment_id))
        case CaptureItem():
            return Item(type=ItemType.CAPTURE, payment_id=_payment_id(body.payment_id), amount_minor=if_given(body.amount))
        case RefundItem():
            require_harmless([("reason", body.reason)])
            return Item(
                type=ItemType.REFUND,
                payment_id=_payment_id(body.payment_id),
                amount_minor=if_given(body.amount),
                reason=body.reason,
            )


def read_resumption(body: bytes) -> tuple[str, int | None, int | None]:
    """Decode a resumption: the token, and the changed terms. Raises `Malformed`, `Unprocessable`."""
    wanted = decode_body(_resume, body)
    return wanted.resume_token, wanted.deadline_seconds, wanted.concurrency


def _payment_id(text: str) -> PaymentId:
    try:
        return PaymentId(decode_id(PAYMENT, text))
    except InvalidId as error:
        raise Unprocessable(str(error), code="invalid_field", path="$.payment_id") from error


def _repetitions(items: dict[int, Item]) -> Iterator[ItemError]:
    """Errors for items that repeat an earlier one, most likely a copied line."""
    seen: dict[tuple[ItemType, object], int] = {}
    for number, item in items.items():
        about = item.reference if item.charge is not None else item.payment_id
        first = seen.setdefault((item.type, about), number)
        if first != number:
            field, said = ("order_id", "order") if item.charge is not None else ("payment_id", "payment")
            yield ItemError(
                item=number,
                path=f"$.items[{number - 1}].{field}",
                code="repeated_item",
                detail=f"item {first} has the same {said}: in one batch there is one {item.type.value} for each",
            )


def batch_data(standing: Standing) -> dict[str, Any]:
    """A batch as merchants see it."""
    batch = standing.batch
    unfinished = standing.counts.get(ItemStatus.NOT_STARTED, 0) if batch.status is BatchStatus.RUNNING else 0
    counts = {**standing.counts, ItemStatus.NOT_STARTED: 0} if unfinished else standing.counts
    return {
        "id": encode_id(BATCH, batch.id),
        "object": "batch",
        "status": batch.status.value,
        "count": batch.count,
        "unfinished": unfinished,
        "outcomes": {status.value: counts.get(status, 0) for status in ItemStatus},
        "concurrency": batch.concurrency,
        "deadline_seconds": batch.deadline_seconds,
        "deadline_at": batch.deadline_at,
        "run": batch.run,
        "resume_token": resume_token(batch.id, batch.run) if batch.is_resumable else None,
        "created_at": batch.created_at,
        "started_at": batch.started_at,
        "finished_at": batch.finished_at,
    }


def item_data(result: ItemResult, *, position: int | None = None) -> dict[str, Any]:
    """The result of an item as merchants see it."""
    return {
        "object": "batch_item",
        "item": result.number,
        "position": position,
        "type": result.type.value,
        "status": result.status.value,
        "success": result.success,
        "order_id": result.reference,
        "payment_id": encode_id(PAYMENT, result.payment_id) if result.payment_id is not None else None,
        "payment_status": result.payment_status.value if result.payment_status is not None else None,
        "refund_id": encode_id(REFUND, result.refund_id) if result.refund_id is not None else None,
        "did_check_again": result.did_check_again,
        "code": result.code,
        "detail": result.detail,
    }


def never_started(number: int, item: Item | None) -> dict[str, Any]:
    """An item that was never started. None stands for one whose request has been deleted."""
    if item is None:
        bare = item_data(ItemResult(number=number, type=ItemType.CHARGE, status=ItemStatus.NOT_STARTED))
        return {**bare, "type": None}
    return item_data(
        ItemResult(
            number=number,
            type=item.type,
            status=ItemStatus.NOT_STARTED,
            reference=item.reference,
            payment_id=item.payment_id,
        )
    )
