"""Input and output of `florin batch run`: rows of CSV or NDJSON as items of a batch, and results as CSV.

Reading is all or nothing, and every error names its line. Columns and fields are named as in the API; an empty cell counts as
missing. The server decides whether an item makes sense.
"""

import csv
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import trio

from core.batch import COUNT_MAX
from core.errors import FlorinError, InvalidItems, Malformed
from core.nearest import unknown
from server.api.batches.bodies import BODY_BYTES_MAX, read_batch
from server.api.parsing import require_unique_names
from server.cli.output import shown

NOT_STARTED, NOT_KNOWN = MISSING = ("NOT_STARTED", "NOT_KNOWN")
FILE_BYTES_MAX = 64 * 1_048_576
ERRORS_SHOWN = 20
COLUMNS = (
    "type",
    "order_id",
    "amount",
    "currency",
    "token",
    "payment_id",
    "description",
    "capture",
    "statement_descriptor",
    "reason",
)
METADATA_PREFIX = "metadata."
_DELIMITERS = (",", ";", "\t")
_ZIP = b"PK\x03\x04"
_RESULT_COLUMNS = (
    "line",
    "item",
    "type",
    "status",
    "success",
    "order_id",
    "amount",
    "currency",
    "payment_id",
    "payment_status",
    "refund_id",
    "did_check_again",
    "code",
    "detail",
)


HEADING = ",".join(_RESULT_COLUMNS)
"""The header line of a file of results, which is all that a run without rows writes."""


class BadFile(FlorinError):
    """The file cannot be run; the text names the lines."""

    code = "bad_file"


@dataclass(frozen=True, slots=True)
class Rows:
    """The items of a file, the line on which each begins, and the digest of the file."""

    path: Path
    items: list[dict[str, Any]]
    lines: list[int]
    sha256: str

    def line(self, number: int) -> int:
        """The line of an item, by its number from 1."""
        return self.lines[number - 1]


def read_rows(path: Path) -> Rows:
    """Read a file. Raises `BadFile`."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise BadFile(f"{path} is larger than {FILE_BYTES_MAX // 1_048_576} MiB: split it")
        data = path.read_bytes()
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror or error}") from error
    if data[:4] == _ZIP:
        raise BadFile(f"{path} is a workbook: save it as CSV first, in Excel as 'CSV UTF-8'")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadFile(f"{path}, line {line}: not UTF-8: save the file as UTF-8, in Excel as 'CSV UTF-8'") from error
    is_json = path.suffix.lower() in (".ndjson", ".jsonl", ".json") or text.lstrip().startswith("{")
    errors: list[tuple[int, str]] = []
    found = list(_json_rows(text, errors) if is_json else _csv_rows(path, text, errors))
    if len(found) > COUNT_MAX:
        raise BadFile(f"{path} has {len(found):,} rows; a batch has at most {COUNT_MAX:,}: split it")
    rows = Rows(path, [item for _, item in found], [line for line, _ in found], hashlib.sha256(data).hexdigest())
    errors += _wrong_items(rows)
    if errors:
        raise BadFile(listed_errors(path, errors))
    return rows


def _wrong_items(rows: Rows) -> list[tuple[int, str]]:
    """The errors that the server would report, by line."""
    body = msgspec.json.encode({"items": rows.items})
    if len(body) > BODY_BYTES_MAX:
        raise BadFile(f"{rows.path} is too large for one batch, which takes {BODY_BYTES_MAX // 1_048_576} MiB: split it")
    if not rows.items:
        return []
    try:
        trio.run(read_batch, body)
    except InvalidItems as error:
        return errors_of(rows, [{"item": one.item, "path": one.path, "detail": one.detail} for one in error.errors])
    return []


def errors_of(rows: Rows, errors: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """The errors of items, by line."""
    found: list[tuple[int, str]] = []
    for one in errors:
        name = one["path"].partition("].")[2]
        detail = re.sub(r"^item (\d+) has", lambda match: f"line {rows.line(int(match[1]))} has", one["detail"])
        found.append((rows.line(one["item"]), f"{name}: {detail}" if name else detail))
    return found


def listed_errors(path: Path, errors: Sequence[tuple[int, str]]) -> str:
    """All errors of a file, by line, or the first of many."""
    count = len(errors)
    lines = [f"{path}, line {line}: {shown(said[:300])}" for line, said in sorted(errors)[:ERRORS_SHOWN]]
    if count > ERRORS_SHOWN:
        lines.append(f"and {count - ERRORS_SHOWN:,} more lines")
    return "\n".join([f"nothing was started: {count:,} line{'s are' if count > 1 else ' is'} invalid", *lines])


def _json_rows(text: str, errors: list[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, said in enumerate(text.split("\n"), start=1):
        if not said.strip():
            continue
        try:
            row = msgspec.json.decode(said)
            require_unique_names(said.encode())
        except (msgspec.DecodeError, UnicodeError) as error:
            errors.append((line, f"not JSON: {error}"))
            continue
        except (Malformed, RecursionError) as error:
            errors.append((line, str(error)))
            continue
        if isinstance(row, dict):
            yield line, {"type": "charge", **row}
        else:
            errors.append((line, 'expected an object like {"type": "verify", "payment_id": "pay_..."}'))


def _csv_rows(path: Path, text: str, errors: list[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    names, rows = _read_csv(path, text)
    # What is left of an amount is another amount. A cut name, token or identifier is refused by the server.
    is_cut = bool(rows) and not text.endswith(("\n", "\r")) and (names[-1] == "amount" or not rows[-1][1][-1].strip())
    for begins, cells in rows:
        # A line that was cut would ask for something else: a refund without its amount is one of everything.
        if len(cells) != len(names):
            errors.append((begins, f"this line has {len(cells)} cells, the header line {len(names)}"))
        elif is_cut and begins == rows[-1][0]:
            advice = "it may have been cut; add a line break if it is whole"
            errors.append((begins, f"the file ends in this line's {names[-1]}, without a line break: {advice}"))
        else:
            yield begins, _item(dict(zip(names, cells, strict=True)))


def _read_csv(path: Path, text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the line and the cells of each row that is not blank. Raises `BadFile`."""
    heading = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=heading.count)
    csv.field_size_limit(FILE_BYTES_MAX)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        names = [_column_name(name) for name in next(reader, [])]
        _require_columns(path, names)
        begins = reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((begins, cells))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise BadFile(f"{path}, line {reader.line_num}: {error}") from error
    return names, rows


def _require_columns(path: Path, names: list[str]) -> None:
    if not names:
        raise BadFile(f"{path} is empty: the first line must name the columns, e.g. order_id,amount,currency,token")
    for name in names:
        if name not in COLUMNS and not name.startswith(METADATA_PREFIX):
            raise BadFile(f"{path}, line 1: {unknown('column', name, [*COLUMNS, f'{METADATA_PREFIX}NAME'])}")
    if len(set(names)) < len(names):
        raise BadFile(f"{path}, line 1: a column name is repeated")


def _column_name(text: str) -> str:
    """The name of a column, whose case matters only in metadata, where the name is the merchant's."""
    prefix, dot, name = text.strip().partition(".")
    return f"{METADATA_PREFIX}{name}" if dot and f"{prefix.lower()}." == METADATA_PREFIX else text.strip().lower()


def _item(cells: dict[str, str]) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "charge"}
    metadata = {}
    for name, cell in cells.items():
        text = cell.strip()
        if not text:
            continue
        if name.startswith(METADATA_PREFIX):
            metadata[name.removeprefix(METADATA_PREFIX)] = text
        elif name == "amount":
            is_whole = text.isascii() and text.isdigit() and len(text) <= 15
            item["amount"] = int(text) if is_whole else text
        else:
            item[name] = text.lower() if name in ("type", "capture") else text
    return {**item, "metadata": metadata} if metadata else item


def write_results(path: Path, rows: Rows, results: dict[int, dict[str, Any]], *, missing: str) -> None:
    """Write the results in the order of the file. The file appears as a whole or not at all.

    `missing` is the status of an item without a result.
    """
    made = io.StringIO(newline="")
    writer = csv.writer(made)
    writer.writerow(_RESULT_COLUMNS)
    for number, (line, item) in enumerate(zip(rows.lines, rows.items, strict=True), start=1):
        result = results.get(number) or {"status": missing, "success": 0}
        asked: dict[str, Any] = {
            name: item[name] for name in ("type", "order_id", "amount", "currency", "payment_id") if name in item
        }
        known = {name: value for name, value in result.items() if value is not None}
        cells: dict[str, Any] = {"line": line, "item": number, **asked, **known}
        writer.writerow([_cell(cells.get(name)) for name in _RESULT_COLUMNS])
    write_whole(path, made.getvalue().encode())


def read_results(path: Path) -> dict[int, dict[str, Any]]:
    """Read the results of an earlier run, by item; empty if there are none."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = {int(row["item"]): dict(row) for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, csv.Error):
        return {}
    return {number: row for number, row in found.items() if row.get("status") not in (*MISSING, None, "")}


def write_whole(path: Path, data: bytes, *, is_new: bool = False) -> None:
    """Replace a file atomically; with `is_new` it must not exist. Raises `BadFile`."""
    try:
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=path.name + ".", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                if is_new:
                    path.open("xb").close()  # only one of two that start at the same moment continues
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except FileExistsError as error:
        raise BadFile(f"{path} exists: another run of this file has just started") from error
    except OSError as error:
        raise BadFile(f"cannot write {path}: {error.strerror or error}") from error


def _cell(value: object) -> object:
    """A cell that no spreadsheet interprets as a formula."""
    if isinstance(value, bool):
        return int(value)
    text = "" if value is None else str(value)
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
