"""The demo merchant and operators of `florin up`, and the secrets that the sandbox and Florin share.

Everything is drawn once and kept in `demo.json` in the data directory, readable by its owner only, so that the key that was shown
still works after a restart. Writing it to the database again changes nothing.
"""

import secrets
from datetime import datetime
from pathlib import Path
from typing import Literal
from uuid import UUID

import msgspec

from core.errors import FlorinError
from core.ids import EndpointId, MerchantId, PspAccountId
from core.operators import Operator, OperatorRole
from core.signing import standard_secret
from server.atomic_files import write_private
from server.credentials import api_key, key_hash
from server.db.connection import Connection
from server.db.merchants import api_keys, merchants
from server.db.operators.operators import TOTP_TABLE, add_operator, list_operators
from server.db.psps.accounts import PspAccount, add_psp_account
from server.db.webhooks.endpoints import Endpoint, add_endpoint, move_endpoint
from server.passwords import hash_password, totp_secret
from server.psp.providers import PROVIDERS
from server.sealing import Sealer
from server.uuid7 import uuid7

_MODE: Literal["test"] = "test"
_SANDBOX = PROVIDERS["sandbox"]


class Demo(msgspec.Struct, frozen=True):
    """The identities and secrets of the demo."""

    merchant_id: UUID
    api_key_id: UUID
    api_key: str
    endpoint_id: UUID
    webhook_secret: str
    psp_account_id: UUID
    psp_api_key: str
    psp_webhook_secret: str

    def psp_webhook_url(self, api_url: str) -> str:
        """The address to which the sandbox PSP sends its webhooks."""
        return api_url + _SANDBOX.webhook_path(PspAccountId(self.psp_account_id))


class DemoOperator(msgspec.Struct, frozen=True):
    """A demo operator with everything that a login needs."""

    id: UUID
    name: str
    role: OperatorRole
    password: str
    totp_secret: str


_DEMO_OPERATORS = (("ada", OperatorRole.ADMIN), ("grace", OperatorRole.FINANCE))
"""Two, because what moves money takes two."""


def demo_operators(directory: Path) -> list[DemoOperator]:
    """The demo operators of a data directory, drawn at first use. Raises `FlorinError` if this user may not read them."""
    path = directory / "operators.json"
    try:
        if path.exists():
            return msgspec.json.decode(path.read_bytes(), type=list[DemoOperator])
        drawn = [DemoOperator(uuid7(), name, role, secrets.token_urlsafe(16), totp_secret()) for name, role in _DEMO_OPERATORS]
        write_private(path, msgspec.json.encode(drawn))
    except (msgspec.DecodeError, OSError) as error:
        raise FlorinError(f"{path} cannot be used: {error}. Remove it to get new demo operators") from error
    return drawn


async def provision_operators(connection: Connection, directory: Path, sealer: Sealer, *, now: datetime) -> None:
    """Write the demo operators to a database that has no operators."""
    if await list_operators(connection):
        return
    for one in demo_operators(directory):
        hashed = await hash_password(one.password)
        async with connection.atomic():
            await add_operator(
                connection,
                Operator(id=one.id, name=one.name, role=one.role),
                password_hash=hashed,
                sealed_totp_secret=sealer.seal(one.totp_secret, table=TOTP_TABLE, row=one.id),
                key_sha256=None,
                recovery_hashes=[],
                now=now,
            )


def load_or_generate(path: Path) -> Demo:
    """The demo of this data directory, drawn at first use."""
    if path.exists():
        try:
            return msgspec.json.decode(path.read_bytes(), type=Demo)
        except (msgspec.DecodeError, OSError) as error:
            raise FlorinError(f"{path} cannot be read: {error}. Remove it to get a new demo merchant") from error
    merchant_id = MerchantId(uuid7())
    demo = Demo(
        merchant_id=merchant_id,
        api_key_id=uuid7(),
        api_key=api_key(_MODE, merchant_id),
        endpoint_id=uuid7(),
        webhook_secret=standard_secret(secrets.token_bytes(32)),
        psp_account_id=uuid7(),
        psp_api_key=f"sandbox_{secrets.token_hex(24)}",
        psp_webhook_secret=f"{_SANDBOX.webhook_secret_prefix}{secrets.token_hex(24)}",
    )
    write_private(path, msgspec.json.encode(demo))
    return demo


async def provision(connection: Connection, demo: Demo, sealer: Sealer, *, psp_url: str, shop_url: str, now: datetime) -> None:
    """Write the demo to the database, or update its addresses."""
    account_id, merchant_id = PspAccountId(demo.psp_account_id), MerchantId(demo.merchant_id)
    account = PspAccount(
        id=account_id,
        psp=_SANDBOX.name,
        mode=_MODE,
        base_url=psp_url,
        sealed_api_key=sealer.seal(demo.psp_api_key, table="psp_accounts.api_key", row=account_id),
        sealed_webhook_secret=sealer.seal(demo.psp_webhook_secret, table="psp_accounts.webhook_secret", row=account_id),
        name="Sandbox",
    )
    await add_psp_account(connection, account, now=now)
    if await merchants.find_merchant(connection, merchant_id) is None:
        async with connection.atomic():
            await merchants.add_merchant(connection, merchants.Merchant(merchant_id, "Demo shop", _MODE, account_id, now))
            await api_keys.add_api_key(
                connection,
                merchant_id,
                demo.api_key_id,
                secret_sha256=key_hash(demo.api_key),
                hint=demo.api_key[-4:],
                now=now,
            )
    sealed = sealer.seal(demo.webhook_secret, table="webhook_endpoints", row=demo.endpoint_id, merchant=merchant_id)
    endpoint_id, url = EndpointId(demo.endpoint_id), f"{shop_url}/webhooks"
    endpoint = Endpoint(id=endpoint_id, merchant_id=merchant_id, url=url, sealed_secret=sealed, created_at=now, updated_at=now)
    await add_endpoint(connection, endpoint)
    await move_endpoint(connection, merchant_id, endpoint_id, url)
