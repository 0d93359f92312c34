"""The routes of webhook endpoints, deliveries and dead letters, with their OpenAPI descriptions."""

from collections.abc import Sequence

from core.api_keys import KeyScope
from server import resources
from server.api.routing import CURSOR, LIMIT, WEBHOOKS, Parameter, Route, get, post
from server.api.webhooks.bodies import ChangeEndpoint, CreateEndpoint, ReplayEvents, RotateSecret, SelectLetters
from server.api.webhooks.handlers import EndpointsApi
from server.resources import Accepted, Endpoint

_OF_ENDPOINT = "/v1/webhook-endpoints/{endpoint_id}"


def endpoint_routes(endpoints: EndpointsApi) -> Sequence[Route]:
    """Webhook endpoints."""
    return [
        post(
            "/v1/webhook-endpoints",
            endpoints.create,
            WEBHOOKS,
            "Add an endpoint; its secret is shown once",
            {201: Endpoint},
            body=CreateEndpoint,
        ),
        get("/v1/webhook-endpoints", endpoints.list_all, WEBHOOKS, "List endpoints", resources.Whole[Endpoint]),
        get(_OF_ENDPOINT, endpoints.read, WEBHOOKS, "Read an endpoint", Endpoint, problems=[404]),
        Route(
            method="PATCH",
            path=_OF_ENDPOINT,
            handle=endpoints.change,
            tag=WEBHOOKS,
            summary="Change, disable or enable an endpoint",
            replies={200: Endpoint},
            body=ChangeEndpoint,
            problems=(400, 404, 422),
            scope=KeyScope.WEBHOOKS_WRITE,
        ),
        Route(
            method="DELETE",
            path=_OF_ENDPOINT,
            handle=endpoints.remove,
            tag=WEBHOOKS,
            summary="Delete an endpoint and drop its pending deliveries",
            replies={204: None},
            problems=(404,),
            scope=KeyScope.WEBHOOKS_WRITE,
        ),
    ]


def delivery_routes(endpoints: EndpointsApi) -> Sequence[Route]:
    """The log of deliveries, and sending events again."""
    one_delivery = f"{_OF_ENDPOINT}/deliveries/{{seq}}"
    states = Parameter("state", {"type": "string", "enum": ["PENDING", "DELIVERED", "DEAD", "DROPPED"]}, "only these")
    return [
        post(
            f"{_OF_ENDPOINT}/rotate-secret",
            endpoints.rotate,
            WEBHOOKS,
            "Replace the secret; both sign for a while",
            {200: Endpoint},
            body=RotateSecret,
            problems=[404],
        ),
        post(f"{_OF_ENDPOINT}/test", endpoints.test, WEBHOOKS, "Send a test event", {202: resources.Event}, problems=[404]),
        post(
            f"{_OF_ENDPOINT}/replay",
            endpoints.replay,
            WEBHOOKS,
            "Send a range of events again, 50 a second",
            {202: Accepted},
            body=ReplayEvents,
            problems=[404],
        ),
        get(
            f"{_OF_ENDPOINT}/deliveries",
            endpoints.deliveries,
            WEBHOOKS,
            "List deliveries, the latest event first",
            resources.Page[resources.Delivery],
            parameters=(states, CURSOR, LIMIT),
            problems=[404],
        ),
        get(
            one_delivery,
            endpoints.delivery,
            WEBHOOKS,
            "Read a delivery and its attempts",
            resources.DeliveryDetail,
            problems=[404],
        ),
        post(f"{one_delivery}/resend", endpoints.resend, WEBHOOKS, "Send one event now", {202: Accepted}, problems=[404]),
    ]


def letter_routes(endpoints: EndpointsApi) -> Sequence[Route]:
    """Dead letters."""
    of_endpoint = Parameter("endpoint_id", {"type": "string"}, "only this endpoint")
    letters = SelectLetters
    return [
        get(
            "/v1/dead-letters",
            endpoints.dead_letters,
            WEBHOOKS,
            "List deliveries that were given up",
            resources.Page[resources.DeadLetter],
            parameters=(of_endpoint, CURSOR, LIMIT),
            problems=[404],
        ),
        post(
            "/v1/dead-letters/retry",
            endpoints.retry_letters,
            WEBHOOKS,
            "Retry dead letters, 50 a second for each endpoint, at most 10,000 at a time",
            {202: Accepted},
            body=letters,
            problems=[404],
        ),
        post(
            "/v1/dead-letters/drop",
            endpoints.drop_letters,
            WEBHOOKS,
            "Drop dead letters for good",
            {202: Accepted},
            body=letters,
            problems=[404],
        ),
    ]
