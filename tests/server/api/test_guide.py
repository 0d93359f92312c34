"""The examples of the merchants' guide do what the guide says: in curl, Python and node, against a running Florin."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.conftest import ROOT, program
from tests.support.florin import Florin

GUIDE = ROOT / "server" / "api" / "README.md"
NODE_MODULES = ROOT / ".node" / "node_modules"
SECONDS = 60
LANGUAGES = {"sh": "sh", "python": "py", "js": "mjs"}


@dataclass(frozen=True)
class Example:
    """A block of code, and the output that the guide shows for it."""

    number: int
    language: str
    code: str
    output: str


def examples() -> list[Example]:
    """The blocks of code that are followed by a block of output."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```\n\n^```output\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    return [Example(number, *block) for number, block in enumerate(blocks, start=1)]


def command(language: str, file: Path) -> list[str]:
    """The command that runs a file."""
    match language:
        case "sh":
            program("curl")
            return ["bash", "-euo", "pipefail", str(file)]
        case "python":
            return [sys.executable, str(file)]
        case _:
            return [program("node"), str(file)]


def test_every_block_of_code_is_an_example() -> None:
    """Except for the one that sets the environment, which is indented."""
    fences = re.findall(r"^```(\w+)$", GUIDE.read_text(), re.MULTILINE)
    assert [one.language for one in examples()] == [name for name in fences if name != "output"]
    assert set(fences) == {*LANGUAGES, "output"}


@pytest.mark.timeout(300)
async def test_the_examples_print_what_the_guide_says(florin: Florin, tmp_path: Path) -> None:
    environment = {
        "FLORIN_API_URL": florin.api_url,
        "FLORIN_API_KEY": florin.demo.api_key,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT / "server" / "merchant_client"),
    }
    if not (NODE_MODULES / "ws").exists():
        program("npm's ws")
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    for example in examples():
        file = tmp_path / f"example{example.number}.{LANGUAGES[example.language]}"
        file.write_text(example.code)
        with trio.fail_after(SECONDS):
            done = await trio.run_process(
                command(example.language, file), env=environment, capture_stdout=True, stderr=subprocess.STDOUT, check=False
            )
        said = done.stdout.decode()
        expected = ".*".join(re.escape(part) for part in example.output.strip().split("…"))
        assert done.returncode == 0, f"example {example.number}:\n{example.code}\n{said}"
        assert re.fullmatch(expected, said.strip(), re.DOTALL), f"example {example.number}:\n{example.code}\n{said}"
