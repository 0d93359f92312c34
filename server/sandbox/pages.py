"""Renders the pages of the sandbox and the shop: plain HTML forms that work without JavaScript, on a phone and with a screen
reader.
"""

from typing import Any
from urllib.parse import parse_qsl

import jinja2

from core.money import Money
from server.http.asgi import Scope, Send, respond

HTML = b"text/html; charset=utf-8"
FORM_BYTES_MAX = 16_384
FIELDS_MAX = 20
_SECURITY = [
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]

_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("server.sandbox", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
)
_templates.filters["money"] = lambda amount, currency: str(Money(amount, currency))
_templates.filters["grouped"] = lambda digits: " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))


async def send_page(send: Send, template: str, *, status: int = 200, **values: Any) -> None:
    """Answer with a page."""
    body = _templates.get_template(template).render(**values).encode()
    await respond(send, status, body, content_type=HTML, headers=_SECURITY)


async def redirect(send: Send, location: str) -> None:
    """Answer with 303, after which the browser continues with GET."""
    await respond(send, 303, b"", content_type=HTML, headers=[(b"location", location.encode("ascii", "ignore"))])


def form(body: bytes) -> dict[str, str]:
    """The fields of a submitted form; none if it is not one of ours, which have few."""
    try:
        return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=FIELDS_MAX))
    except ValueError:
        return {}


def query(scope: Scope) -> dict[str, str]:
    """The fields of the query string."""
    return form(scope["query_string"])
