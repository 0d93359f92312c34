"""The rules of the house, held by tests: who imports whom, what `core` may use, formatting, lint, types, pinned versions."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from server.cli import haproxy

HOUSE = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

_TOOLS = {
    "server.atomic_files",
    "server.child_process",
    "server.clock",
    "server.credentials",
    "server.sealing",
    "server.settings",
    "server.telemetry",
    "server.uuid7",
}
_DOMAIN = {
    "core",
    "server.concurrency",
    "server.db",
    "server.http",
    "server.psp",
    "server.uuid7",
    "server.sealing",
    "server.telemetry",
}
MAY_IMPORT: dict[str, set[str]] = {
    "server": set(),
    "core": set(),
    "server.clock": set(),
    "server.uuid7": set(),
    "server.credentials": {"core"},
    "server.atomic_files": {"core"},
    "server.sealing": {"core", "server.atomic_files"},
    "server.settings": {"core"},
    "server.telemetry": {"core"},
    "server.child_process": set(),
    "server.resources": {"core"},
    "server.concurrency": {"core"},
    "server.http": {"core"},
    "server.db": {"core"},
    "server.psp": {"core", "server.http"},
    "server.flows": {"server.resources", *_DOMAIN},
    "server.api": {"server.flows", "server.resources", "server.credentials", *_DOMAIN},
    "server.jobs": {"server.flows", *_DOMAIN},
    "server.merchant_client": set(),
    "server.sandbox": {"core", "server.http", "server.telemetry", "server.child_process"},
    "server.process": set(),
    "server.process.psp_adapters": {"core", "server.db", "server.psp", "server.http", *_TOOLS},
    "server.process.alert_channels": {"core", "server.flows", "server.settings"},
    "server.process.demo": {"core", "server.db", "server.http", "server.psp", *_TOOLS},
    "server.process.embedded_postgres": {"core", "server.db", *_TOOLS},
    "server.process.worker": {
        "server.api",
        "server.flows",
        "server.jobs",
        "server.process.alert_channels",
        "server.process.psp_adapters",
        *_DOMAIN,
        *_TOOLS,
    },
    "server.process.supervisor": {"core", "server.child_process", "server.process.worker"},
    "server.process.instance": {"core", "server.db", "server.http", "server.process", "server.sandbox", *_TOOLS},
    "server.cli": {"core", "server", "bench"},
    "bench.generator": {"server.child_process"},
    "bench.measure": set(),
    "bench.peers": set(),
    "bench.micro": {"core", "server", "bench.measure", "bench.generator"},
    "bench": {"core", "server", "bench"},
}
"""The imports allowed to each package besides its own modules: they point down only. The longest name that fits counts."""

ROOM_FILES_MAX = 16
CROWDED = {"core"}
"""Rooms that may hold more files: `core` is flat on purpose."""


def _modules(*packages: str) -> list[tuple[str, Path]]:
    files = [file for package in packages or ("core", "server", "bench") for file in sorted((HOUSE / package).rglob("*.py"))]
    return [(".".join(file.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__"), file) for file in files]


def _room(module: str) -> str:
    """The longest name of `MAY_IMPORT` that the module is, or is below. What stands in `server` itself is listed."""
    fitting = [one for one in MAY_IMPORT if module == one or (one != "server" and module.startswith(one + "."))]
    assert fitting, f"{module} stands in no room of `MAY_IMPORT`"
    return max(fitting, key=len)


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_point_down_only() -> None:
    wrong = []
    for module, file in _modules():
        room = _room(module)
        for imported in _imports(file):
            is_ours = imported.split(".")[0] in ("core", "server", "bench", "tests")
            allowed = {room, *MAY_IMPORT[room]}
            if is_ours and not any(imported == one or imported.startswith(one + ".") for one in allowed):
                wrong.append(f"{module} imports {imported}")
    assert wrong == []


def test_no_test_module_imports_another() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, file in _modules("tests")
        for imported in _imports(file)
        if re.search(r"^tests\.(.*\.)?test_", imported)
    ]
    assert wrong == []


def test_the_core_uses_only_the_standard_library_and_msgspec() -> None:
    for module, file in _modules("core"):
        foreign = {name.split(".")[0] for name in _imports(file)} - {"core", "msgspec"} - sys.stdlib_module_names
        assert not foreign, f"{module} imports {foreign}"
        impure = {
            name for name in _imports(file) if name.split(".")[0] in ("time", "random", "secrets", "os", "socket", "uuid.uuid4")
        }
        assert not impure, f"{module} imports {impure}"


def test_only_the_settings_read_the_environment() -> None:
    """The parent passes its environment on to its children; nothing else looks at it."""
    modules = [(module, file) for module, file in _modules("core", "server") if module != "server.settings"]
    readers = [module for module, file in modules if re.search(r"os\.(environ\[|environ\.get|getenv)", file.read_text())]
    assert readers == []


def test_rooms_files_and_functions_stay_small() -> None:
    long_files, long_functions = [], []
    for module, file in _modules():
        text = file.read_text()
        if text.count("\n") > 350:
            long_files.append(module)
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        long_functions += [f"{module}.{one.name}" for one in functions if (one.end_lineno or 0) - one.lineno > 55]
    rooms = Counter(str(file.parent.relative_to(HOUSE)) for _, file in _modules() if file.name != "__init__.py")
    crowded = [room for room, count in rooms.items() if count > ROOM_FILES_MAX and room not in CROWDED]
    assert (crowded, long_files, long_functions) == ([], [], [])


def test_no_line_of_sql_was_filled_like_prose() -> None:
    """A tool that fills paragraphs ends lines of SQL anywhere; nobody does that by hand."""
    torn = re.compile(r"\b(FROM|ON|DEFAULT)$")
    lines = [
        f"{file.relative_to(HOUSE)}:{number}"
        for _, file in _modules("core", "server", "bench", "tests")
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if torn.search(line)
    ]
    lines += [
        f"{file.relative_to(HOUSE)}:{number}"
        for file in sorted((HOUSE / "server").rglob("*.sql"))
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if torn.search(line)
    ]
    assert lines == []


@pytest.mark.timeout(400)  # flake8-async reads slowly
@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "--quiet", "."],
        ["ruff", "check", "--quiet", "."],
        ["mypy"],
        ["flake8-async", "--disable=ASYNC9,ASYNC114", "FILES"],
    ],
    ids=lambda command: command[0] + " " + command[1] if len(command) > 1 else command[0],
)
def test_the_checks_are_clean(command: list[str]) -> None:
    files = [str(file) for package in ("core", "server", "bench", "tests") for file in sorted((HOUSE / package).rglob("*.py"))]
    pieces = [files[0::2], files[1::2]] if "FILES" in command else [[]]
    running = [
        subprocess.Popen(
            [str(BIN / command[0]), *(word for word in command[1:] if word != "FILES"), *piece],
            cwd=HOUSE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for piece in pieces
    ]
    said = [one.communicate()[0] for one in running]
    assert [one.returncode for one in running] == [0] * len(running), "".join(said)


def test_docstrings_say_what_things_do() -> None:
    """A docstring opens with an indicative or a noun, not with a question word."""
    question = re.compile(r"\s*(What|Whether|Where|When|Which|Who|Whom|Whose|Why|How)\b")
    found = [
        f"{file.relative_to(HOUSE)}:{node.lineno}"
        for _, file in _modules("core", "server", "bench", "tests")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if question.match(node.value.value)
    ]
    assert found == []


def test_every_installed_version_is_pinned() -> None:
    pinned = dict(
        line.split("==")
        for line in (HOUSE / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
        if "==" in line
    )
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    direct = [*project["dependencies"], *(name for names in project["optional-dependencies"].values() for name in names)]
    seen: dict[str, str] = {}
    waiting = [_name(requirement) for requirement in direct]
    while waiting:
        name = waiting.pop()
        if name in seen or name == "florin":
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another system or another Python
        seen[name] = distribution.version.lower()
        waiting += [_name(requirement) for requirement in distribution.requires or [] if "extra ==" not in requirement]
    assert {name: version for name, version in seen.items() if pinned.get(name) != version} == {}


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_the_load_balancers_configuration_is_what_the_command_prints() -> None:
    printed = haproxy.render(bind="127.0.0.1:8000", host="127.0.0.1", port=8080, workers=2)
    assert (HOUSE / "deploy" / "haproxy.cfg").read_text() == printed


def test_no_lock_file_with_addresses_and_no_address_of_a_registry() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=HOUSE, capture_output=True, text=True, check=True).stdout.split()
    assert "uv.lock" not in tracked
    assert not any("://" in line for line in (HOUSE / "constraints.txt").read_text().splitlines())
