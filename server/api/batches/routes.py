"""The routes of batches, with their OpenAPI descriptions."""

from collections.abc import Sequence
from typing import Any

from server import resources
from server.api.batches.bodies import BODY_BYTES_MAX, CreateBatch, ResumeBatch
from server.api.batches.handlers import BatchesApi
from server.api.routing import BATCHES, CURSOR, LIMIT, PREFER, Parameter, Route, get, post
from server.resources import Batch

_OF_BATCH = "/v1/batches/{batch_id}"


def batch_routes(batches: BatchesApi) -> Sequence[Route]:
    """`/v1/batches`."""
    after = Parameter("after", {"type": "integer", "minimum": 0}, "`position` of the last item that you have")
    ended: dict[int, Any] = {200: resources.BatchReport, 202: resources.Batch}
    lines = "; with `Accept: application/x-ndjson`, a line per item as its result becomes known, and a summary"
    return [
        post(
            "/v1/batches",
            batches.create,
            BATCHES,
            f"Carry out many operations under one deadline{lines}, or the 408 problem",
            ended,
            body=CreateBatch,
            parameters=[PREFER],
            problems=[408],
            body_bytes_max=BODY_BYTES_MAX,
            reads_body=True,
            tells_lines=True,
        ),
        get(
            "/v1/batches", batches.list, BATCHES, "List batches, newest first", resources.Page[Batch], parameters=[CURSOR, LIMIT]
        ),
        get(_OF_BATCH, batches.read, BATCHES, f"Read a batch{lines}", Batch, parameters=[after, PREFER], problems=[404]),
        get(
            f"{_OF_BATCH}/items",
            batches.items,
            BATCHES,
            "List results, in the order in which they became known",
            resources.BatchItemPage,
            parameters=[after, LIMIT],
            problems=[404],
        ),
        post(
            f"{_OF_BATCH}/stop",
            batches.stop,
            BATCHES,
            "Start no more items; those under way are finished",
            {202: Batch},
            needs_key=False,
            problems=[404],
        ),
        post(
            f"{_OF_BATCH}/resume",
            batches.resume,
            BATCHES,
            "Settle UNKNOWN items and start those that were never started; each token can be used once",
            ended,
            body=ResumeBatch,
            parameters=[PREFER],
            needs_key=False,
            problems=[404, 408],
            tells_lines=True,
        ),
    ]
