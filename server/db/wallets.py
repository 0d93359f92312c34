"""Reading wallets."""

import msgspec

from core.ids import MerchantId
from server.db.connection import Connection


class Wallet(msgspec.Struct, frozen=True):
    """What a merchant owns in one currency, in minor units."""

    currency: str
    kind: str
    balance: int


async def list_wallets(connection: Connection, merchant_id: MerchantId) -> list[Wallet]:
    """A merchant's wallets, by currency and kind."""
    rows = await connection.query(
        "SELECT currency, kind, balance_minor FROM wallets WHERE merchant_id = $1 ORDER BY currency, kind", merchant_id
    )
    return [Wallet(currency, kind.removeprefix("merchant_"), balance) for currency, kind, balance in rows]
