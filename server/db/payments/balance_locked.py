"""Changes that depend on a wallet's balance: decided under its lock, in a transaction of their own.

The groups of `server.db.payments.changes` add to wallets without reading them. A refund must not overdraw a wallet and a release
must not take more than it holds, so these lock first, in the order of `server.db`: the payment, the merchant's sequences, the
wallets. Then they decide, and write with the same statement as every other change.
"""

from collections.abc import Awaitable, Callable

from core.ids import MerchantId, PaymentId, RefundId
from core.ledger import WalletKind
from core.payment import Payment
from core.refund_transition import Balances
from server.db.connection import Connection
from server.db.payments.change_row import ChangeRow
from server.db.payments.changes import Applied, ChangeGroup, Lost
from server.db.payments.payments import find_payment
from server.db.payments.refunds import find_refund


async def lock_balances(connection: Connection, merchant_id: MerchantId, currency: str) -> Balances:
    """The merchant's balances in a currency, locked until the transaction ends."""
    await connection.query("SELECT last_seq FROM merchant_sequences WHERE merchant_id = $1 FOR UPDATE", merchant_id)
    rows = await connection.query(
        "SELECT kind, balance_minor FROM wallets WHERE merchant_id = $1 AND currency = $2 ORDER BY kind FOR UPDATE",
        merchant_id,
        currency,
    )
    balances: dict[str, int] = dict(rows)
    limits = await connection.query(
        "SELECT negative_limit_minor FROM merchant_currencies WHERE merchant_id = $1 AND currency = $2", merchant_id, currency
    )
    return Balances(
        available_minor=balances.get(WalletKind.AVAILABLE, 0),
        pending_minor=balances.get(WalletKind.PENDING, 0),
        negative_limit_minor=limits[0][0] if limits else 0,
    )


async def change_under_lock(
    connection: Connection,
    group: ChangeGroup,
    merchant_id: MerchantId,
    payment_id: PaymentId,
    decide: Callable[[Payment, Balances], ChangeRow | None],
    *,
    unless_refund: RefundId | None = None,
    also: Callable[[Connection], Awaitable[None]] | None = None,
) -> tuple[ChangeRow, Applied] | None:
    """Change a payment depending on its wallets, and do `also` in the same transaction after that. Returns None if `decide` finds
    nothing to do, if the payment does not exist, or if the refund `unless_refund` exists already.

    Raises what `decide` and `also` raise; nothing is written then.
    """
    async with connection.atomic():
        # While a table is small, the planner would choose a scan of it, and keep that plan when the table has grown.
        await connection.execute("SET LOCAL enable_seqscan = off")
        locked = await connection.query(
            "SELECT 1 FROM payment_requests WHERE merchant_id = $1 AND id = $2 FOR UPDATE", merchant_id, payment_id
        )
        payment = await find_payment(connection, merchant_id, payment_id) if locked else None
        if payment is None:
            return None
        if unless_refund is not None and await find_refund(connection, merchant_id, payment_id, unless_refund) is not None:
            return None
        balances = await lock_balances(connection, merchant_id, payment.money.currency)
        row = decide(payment, balances)
        if row is None:
            return None
        applied = (await group.write(connection, [row]))[0]
        assert not isinstance(applied, Lost), "the payment is locked"
        if also is not None:
            await also(connection)
    return row, applied
