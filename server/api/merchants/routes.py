"""The routes of API keys, with their OpenAPI descriptions."""

from collections.abc import Sequence

from core.api_keys import KeyScope
from server import resources
from server.api.merchants.bodies import RotateKey
from server.api.merchants.handlers import KeysApi
from server.api.routing import KEYS, Route, get, post


def key_routes(keys: KeysApi) -> Sequence[Route]:
    """`/v1/api-keys`."""
    return [
        get("/v1/api-keys", keys.list_all, KEYS, "List your API keys, without their secrets", resources.Whole[resources.ApiKey]),
        post(
            "/v1/api-keys/{key_id}/rotate",
            keys.rotate,
            KEYS,
            "Replace a key by a new one, which is shown once; both are valid for `overlap_seconds`",
            {201: resources.ApiKey},
            body=RotateKey,
            problems=[404],
            scope=KeyScope.READ,
        ),
    ]
