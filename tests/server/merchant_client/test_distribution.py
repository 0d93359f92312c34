"""`florin-client` as a distribution: its generated half, and an installation into an empty environment."""

import json
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import trio

import generate_blocking
from tests.support.florin import Florin

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "server" / "merchant_client"
BYTES_MAX = 12 * 1024 * 1024
EXPECTED = {"anyio", "certifi", "florin-client", "h11", "httpcore2", "httpx2", "idna", "truststore", "typing-extensions"}
PROGRAM = """
import asyncio, sys
from florin_client import AsyncFlorin, Florin
url, key = sys.argv[1:]
with Florin(url, key) as florin:
    print(florin.payments.create(amount=100, currency="EUR", order_id="1", token="tok_paid").status)

async def main() -> None:
    async with AsyncFlorin(url, key) as florin:
        print((await florin.payments.create(amount=100, currency="EUR", order_id="2", token="tok_paid")).status)

asyncio.run(main())
"""


def test_the_blocking_client_is_what_the_generator_makes() -> None:
    format_ = [str(Path(sys.executable).with_name("ruff")), "format", "--quiet", "-"]
    for path, text in generate_blocking.generate().items():
        made = subprocess.run(format_, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        assert path.read_text() == made, f"{path.name}: run generate_blocking.py"
    committed = {path.name for path in (SOURCE / "florin_client" / "_blocking").glob("*.py")}
    assert committed == {path.name for path in generate_blocking.generate()} | generate_blocking.BY_HAND


@pytest.mark.timeout(300)  # pip asks an index
@pytest.mark.slow
async def test_it_installs_alone_and_works(florin: Florin, tmp_path: Path) -> None:
    source, environment = tmp_path / "source", tmp_path / "venv"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))

    def install() -> list[dict[str, str]]:
        venv.create(environment)
        pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
        constraints = str(ROOT / "constraints.txt")
        subprocess.run([*pip, "install", "--quiet", "--no-compile", "-c", constraints, source], check=True)
        listed = subprocess.run([*pip, "list", "--format", "json"], check=True, capture_output=True, text=True).stdout
        packages: list[dict[str, str]] = json.loads(listed)
        return packages

    packages = await trio.to_thread.run_sync(install)
    names = {re.sub(r"[-_.]+", "-", one["name"]).lower() for one in packages}
    assert names <= EXPECTED, names - EXPECTED
    site = next((environment / "lib").glob("python*/site-packages"))
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    print(f"{len(names)} packages, {size / 1024 / 1024:.1f} MiB: {', '.join(sorted(names))}")
    assert size < BYTES_MAX
    assert not any((site / name).exists() for name in ("core", "server", "bench"))
    assert (site / "florin_client" / "py.typed").exists()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = await trio.run_process(
        [environment / "bin" / "python", program, florin.api_url, florin.demo.api_key],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == ["SUCCEEDED", "SUCCEEDED"]
