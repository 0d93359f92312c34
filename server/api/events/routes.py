"""The routes of events, consumers and stream tickets, with their OpenAPI descriptions."""

from collections.abc import Sequence

from server import resources
from server.api.events.bodies import CONSUMER_PATTERN, CreateTicket, PlaceConsumer
from server.api.events.handlers import EventsApi
from server.api.parsing import WAIT_SECONDS_MAX
from server.api.routing import AFTER, EPOCH, EVENTS, LIMIT, TYPES, Parameter, Route, get, post

CONSUMER = Parameter("consumer", {"type": "string", "pattern": CONSUMER_PATTERN}, "begin at this consumer's position")


def event_routes(events: EventsApi) -> Sequence[Route]:
    """The pull API, consumers and stream tickets."""
    wait = Parameter("wait", {"type": "integer", "minimum": 0}, f"seconds to wait for an event, up to {WAIT_SECONDS_MAX}")
    name = "/v1/consumers/{name}"
    return [
        get(
            "/v1/events",
            events.list_all,
            EVENTS,
            "List the events after a given one, in order; with `wait`, as soon as there is one",
            resources.EventPage,
            parameters=(AFTER, LIMIT, TYPES, wait, CONSUMER, EPOCH),
            problems=[409, 503],
        ),
        get("/v1/events/{seq}", events.read, EVENTS, "Read an event by its number", resources.Event, problems=[404]),
        get("/v1/consumers", events.consumers, EVENTS, "List consumers", resources.Whole[resources.Consumer]),
        Route(
            method="PUT",
            path=name,
            handle=events.place_consumer,
            tag=EVENTS,
            summary="Acknowledge: set a consumer's position, forward or back",
            replies={200: resources.Consumer},
            body=PlaceConsumer,
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
            "Create a ticket that opens the stream once, within 30 s, from a browser",
            {201: resources.StreamTicket},
            body=CreateTicket,
            needs_key=False,
            is_cross_origin=True,
        ),
    ]
