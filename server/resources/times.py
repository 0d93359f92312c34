"""Times as merchants see them."""

from datetime import datetime
from typing import Annotated

import msgspec

Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time with its zone, which OpenAPI describes as `date-time`: RFC 3339, in UTC."""
