"""The rules of the code base, as tests: imports, what `core` may use, sizes, formatting, lint, types, pinned versions."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from server import docs
from server.cli.deploy import haproxy
from server.db.doctor.check import Promise
from server.db.doctor.run import CHECKS

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

DOCUMENTS = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
]

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
    "server.__main__": {"server.cli"},
    "core": set(),
    "server.clock": {"core"},
    "server.uuid7": set(),
    "server.credentials": {"core"},
    "server.docs": {"core"},
    "server.atomic_files": {"core"},
    "server.passwords": {"core"},
    "server.sealing": {"core", "server.atomic_files"},
    "server.settings": {"core"},
    "server.telemetry": {"core"},
    "server.child_process": set(),
    "server.resources": {"core"},
    "server.concurrency": {"core"},
    "server.http": {"core"},
    "server.db": {"core"},
    "server.psp": {"core", "server.http"},
    "server.flows": {"server.resources", "server.passwords", "server.credentials", *_DOMAIN},
    "server.api": {"server.flows", "server.resources", "server.credentials", *_DOMAIN},
    "server.jobs": {"server.flows", "server.clock", "server.resources", *_DOMAIN},
    "server.merchant_client": set(),
    "server.sandbox": {"core", "server.http", "server.telemetry", "server.child_process"},
    "server.process": set(),
    "server.process.psp_adapters": {"core", "server.db", "server.psp", "server.http", *_TOOLS},
    "server.process.alert_channels": {"core", "server.flows", "server.settings"},
    "server.process.demo": {"core", "server.db", "server.http", "server.psp", "server.passwords", *_TOOLS},
    "server.process.part": {"core", "server.child_process"},
    "server.process.postgres_user": {"core", "server.child_process"},
    "server.process.postgres_setup": {"server.child_process", "server.process.postgres_user"},
    "server.process.running": {"core", *_TOOLS},
    "server.process.embedded_postgres": {
        "core",
        "server.db",
        "server.process.part",
        "server.process.postgres_setup",
        "server.process.postgres_user",
        *_TOOLS,
    },
    "server.process.worker": {
        "server.api",
        "server.flows",
        "server.jobs",
        "server.process.alert_channels",
        "server.process.psp_adapters",
        *_DOMAIN,
        *_TOOLS,
    },
    "server.process.supervisor": {
        "core",
        "server.http",
        "server.child_process",
        "server.uuid7",
        "server.process.worker_process",
        "server.process.worker_link",
    },
    "server.process.worker_process": {
        "core",
        "server.api",
        "server.http",
        "server.db",
        "server.concurrency",
        "server.process.worker",
        "server.process.worker_link",
        *_TOOLS,
    },
    "server.process.instance": {"core", "server.db", "server.http", "server.process", "server.sandbox", *_TOOLS},
    "server.cli": {"core", "server", "bench"},
    "bench.generator": {"server.child_process"},
    "bench.measure": set(),
    "bench.peers": set(),
    "bench.micro": {"core", "server", "bench.measure", "bench.generator"},
    "bench.micro.instructions": {"core", "server", "bench"},
    "bench.micro.storm": {"core", "server", "bench"},
    "bench": {"core", "server", "bench"},
}
"""The imports allowed to each package besides its own modules: they point down only. The longest name that fits counts."""

PACKAGE_FILES_MAX = 16
LARGE_PACKAGES = {"core"}
"""Packages that may have more files: `core` is flat on purpose."""


def _modules(*packages: str) -> list[tuple[str, Path]]:
    files = [file for package in packages or ("core", "server", "bench") for file in sorted((ROOT / package).rglob("*.py"))]
    return [(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), file) for file in files]


def _listed_package(module: str) -> str:
    """The longest name of `MAY_IMPORT` that the module is, or is below. Modules directly in `server` must be listed."""
    fitting = [one for one in MAY_IMPORT if module == one or (one != "server" and module.startswith(one + "."))]
    assert fitting, f"{module} is missing in `MAY_IMPORT`"
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
        package = _listed_package(module)
        for imported in _imports(file):
            is_ours = imported.split(".")[0] in ("core", "server", "bench", "tests")
            allowed = {package, *MAY_IMPORT[package]}
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
    """The parent passes its environment on to its children; nothing else reads it."""
    modules = [(module, file) for module, file in _modules("core", "server") if module != "server.settings"]
    readers = [module for module, file in modules if re.search(r"os\.(environ\[|environ\.get|getenv)", file.read_text())]
    assert readers == []


def test_packages_files_and_functions_stay_small() -> None:
    long_files, long_functions = [], []
    for module, file in _modules():
        text = file.read_text()
        if text.count("\n") > 350:
            long_files.append(module)
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        long_functions += [f"{module}.{one.name}" for one in functions if (one.end_lineno or 0) - one.lineno > 55]
    packages = Counter(str(file.parent.relative_to(ROOT)) for _, file in _modules() if file.name != "__init__.py")
    too_large = [package for package, count in packages.items() if count > PACKAGE_FILES_MAX and package not in LARGE_PACKAGES]
    assert (too_large, long_files, long_functions) == ([], [], [])


def test_no_line_of_sql_was_filled_like_prose() -> None:
    """A tool that fills paragraphs would break lines of SQL at any word; nobody does that by hand."""
    torn = re.compile(r"\b(FROM|ON|DEFAULT)$")
    lines = [
        f"{file.relative_to(ROOT)}:{number}"
        for _, file in _modules("core", "server", "bench", "tests")
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if torn.search(line)
    ]
    lines += [
        f"{file.relative_to(ROOT)}:{number}"
        for file in sorted((ROOT / "server").rglob("*.sql"))
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if torn.search(line)
    ]
    assert lines == []


HOOKS = {
    hook["id"]: hook
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repository["hooks"]
    if "commit-msg" not in hook.get("stages", ())
}


@pytest.mark.timeout(400)  # flake8-async is slow
@pytest.mark.parametrize("hook", [pytest.param(one, marks=pytest.mark.slow) if one == "flake8-async" else one for one in HOOKS])
def test_the_checks_are_clean(hook: str) -> None:
    """The hooks that pre-commit runs, on all files."""
    program, *arguments = shlex.split(HOOKS[hook]["entry"])
    files = [str(file) for _, file in _modules("core", "server", "bench", "tests")]
    if hook == "flake8-async":  # its rules are about these words only, and it takes a fifth of a second for each file
        files = [one for one in files if re.search("async|await|trio", Path(one).read_text())]
    pieces = [files[0::2], files[1::2]] if HOOKS[hook].get("pass_filenames", True) else [[]]
    running = [
        subprocess.Popen(
            [str(BIN / Path(program).name), *arguments, *piece],
            cwd=ROOT,
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
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for _, file in _modules("core", "server", "bench", "tests")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if question.match(node.value.value)
    ]
    assert found == []


def test_the_readme_fits_its_reader() -> None:
    assert len((ROOT / "README.md").read_bytes()) < 8 * 1024


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in DOCUMENTS
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
        if not (document.parent / target).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("document", docs.parts(), ids=lambda path: path.parent.name)
def test_the_generated_parts_of_the_documents_are_current(document: Path) -> None:
    """`python -m server.docs` writes them."""
    assert docs.rendered(document) == document.read_text()


def test_promises_have_one_name_each() -> None:
    """The doctor's names, those that the architecture explains, and those that code and documents refer to."""
    explained = re.findall(r"^\| `promise:([a-z-]+)` \|", docs.ARCHITECTURE.read_text(), re.MULTILINE)
    assert explained == [promise.value for promise in Promise]
    files = [*DOCUMENTS, *(file for _, file in _modules("core", "server", "bench", "tests"))]
    named = {name for file in files for name in re.findall(r"promise:([a-z-]+)", file.read_text())}
    assert named == set(Promise)
    checked = {check.promise for check in CHECKS}
    assert checked == set(Promise), "a promise without a check of the doctor"


def test_every_installed_version_is_pinned() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines() if "==" in line
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
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
    assert (ROOT / "deploy" / "haproxy.cfg").read_text() == printed


def test_no_lock_file_with_addresses_and_no_address_of_a_registry() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "uv.lock" not in tracked
    assert not any("://" in line for line in (ROOT / "constraints.txt").read_text().splitlines())
