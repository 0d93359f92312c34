"""`/v1/api-keys`: a merchant's own keys. Operators make and revoke them; here they are listed and rotated."""

from uuid import UUID

import msgspec

from core.api_keys import KeyScope
from core.errors import InvalidId, NotFound
from core.idempotency import Reply, fingerprint
from core.ids import API_KEY, decode_id
from server import resources
from server.api.merchants.bodies import read_rotate_key
from server.api.parsing import canonical, read_key, reply_within_seconds
from server.api.replies import CREATED, JSON, send_decision
from server.api.routing import Call
from server.db.merchants.api_keys import list_api_keys
from server.flows.contexts import Webhooks
from server.flows.idempotency import Request, once
from server.flows.merchants.api_keys import rotate
from server.http.asgi import respond


class KeysApi:
    """The handlers."""

    def __init__(self, context: Webhooks) -> None:
        self._context = context

    async def list_all(self, call: Call) -> None:
        """`GET /v1/api-keys`."""
        async with self._context.pool.connection() as connection:
            found = await list_api_keys(connection, call.merchant.id)
        body = {"data": [resources.ApiKey.of(one) for one in found]}
        await respond(call.send, 200, msgspec.json.encode(body), content_type=JSON)

    async def rotate(self, call: Call, key_text: str) -> None:
        """`POST /v1/api-keys/{id}/rotate`. A restricted key may rotate itself only. Only this reply shows the new key."""
        assert call.caller is not None
        try:
            key_id = decode_id(API_KEY, key_text)
        except InvalidId as error:
            raise NotFound("no such API key") from error
        is_whole = KeyScope.ALL in call.caller.scopes
        if key_id != call.caller.key_id:
            call.caller.require(KeyScope.ALL)
        wanted = read_rotate_key(call.body)

        async def work(made_id: UUID) -> bytes:
            derived = self._context.sealer.derive(b"api key", made_id)
            async with self._context.pool.connection() as connection, connection.atomic():
                made = await rotate(
                    connection,
                    call.merchant,
                    key_id,
                    made_id,
                    overlap_seconds=wanted.overlap_seconds,
                    renews=is_whole,
                    secret_bytes=derived,
                    now=self._context.now(),
                )
            return msgspec.json.encode(resources.ApiKey.of(made.key, secret=made.secret))

        request = Request(
            id=call.id,
            merchant_id=call.merchant.id,
            key=read_key(call.scope),
            fingerprint=fingerprint("POST", call.scope["path"].strip("/"), canonical(wanted)),
            reply_status=CREATED,
            wait_seconds=reply_within_seconds(call.scope) or 0.0,
        )
        outcome = await once(self._context, request, work, about=key_id)
        if isinstance(outcome, Reply):
            headers = [(b"cache-control", b"no-store")]
            await respond(call.send, outcome.status, outcome.body, content_type=JSON, headers=headers)
        else:
            await send_decision(call.send, outcome)
