"""Installed from a wheel, away from any checkout, shortviz has all of its files and `shortviz app` serves its pages."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from tests.support.app_server import free_port
from tests.support.paths import ROOT


def pip(*options: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *options]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but shortviz in it, from a wheel; its dependencies are those of this interpreter."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))
    shutil.copytree(ROOT / "shortviz", source / "shortviz", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    offline = ("--no-deps", "--no-index")
    pip("wheel", *offline, "--no-build-isolation", "--wheel-dir", str(wheels), ".", cwd=source)
    (wheel,) = wheels.glob("shortviz-*.whl")
    pip("install", *offline, "--no-compile", "--target", str(site), str(wheel), cwd=wheels)
    return site


@pytest.fixture(scope="module")
def server(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """`shortviz app` of the wheel, started in an empty folder; its port and its process."""
    port, empty = free_port(), tmp_path_factory.mktemp("elsewhere")
    settings = {"SHORTVIZ_RUNS_DIR": str(tmp_path_factory.mktemp("runs")), "SHORTVIZ_PRELOAD": "0"}
    environment = os.environ | settings | {"PYTHONPATH": str(site)}
    found = [sys.executable, "-c", "import shortviz; print(shortviz.__file__)"]
    file = subprocess.run(found, cwd=empty, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(file.strip()).is_relative_to(site), "another shortviz than the wheel's would be served"
    command = [sys.executable, "-m", "shortviz", "app", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=empty, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            said = ""
            while "URL:" not in said:
                line = process.stdout.readline()
                assert line, f"the server ended: {said}"
                said += line
            yield port, process
        finally:
            os.kill(process.pid, signal.SIGTERM)
        rest = process.communicate(timeout=60)[0]
    assert "Traceback" not in said + rest


def test_every_file_of_the_package_is_in_the_wheel(site: Path) -> None:
    def files(folder: Path) -> set[str]:
        found = (path.relative_to(folder) for path in (folder / "shortviz").rglob("*") if path.is_file())
        return {path.as_posix() for path in found if "__pycache__" not in path.parts}

    assert files(site) == files(ROOT)
    folders = ("templates", "builtin_texts", "example_run", "lessons", "ui/start/.streamlit", "ui/assets")
    assert all(any(name.startswith(f"shortviz/{folder}/") for name in files(site)) for folder in folders)


def test_the_first_page_is_served_from_the_wheel(server: tuple[int, subprocess.Popen[str]], site: Path) -> None:
    port, process = server
    for path, told in (("/", "<html"), ("/_stcore/health", "ok")):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            assert answer.status == 200
            assert told in answer.read().decode()
    assert str(site / "shortviz" / "ui" / "start" / "app.py") in psutil.Process(process.pid).cmdline()


@pytest.mark.parametrize(
    ("page", "told"), [("", "Which layers of a language model can go?"), ("map", "Removes layers 12-15")]
)
def test_pages_are_drawn_with_what_the_wheel_brought(
    server: tuple[int, subprocess.Popen[str]], page: str, told: str
) -> None:
    query = "" if page == "" else "start=12&n=4"
    with ThreadPoolExecutor(1) as apart:  # a browser test of the same worker may have a loop of its own running here
        words, wrong = apart.submit(lambda: asyncio.run(visit(server[0], page, query))).result()
    assert wrong == []
    assert told in words
    assert page == "" or "**bundled run** of demo" in words


async def visit(port: int, page: str, query: str) -> tuple[str, list[str]]:
    """Open a page as a browser does; return its words and its exceptions."""
    words, wrong = [], []
    asked = BackMsg(rerun_script={"query_string": query, "page_name": page})
    address = f"ws://127.0.0.1:{port}/_stcore/stream"
    async with websockets.connect(address, subprotocols=["streamlit"], max_size=None) as stream, asyncio.timeout(120):
        await stream.send(asked.SerializeToString())
        while True:
            message = ForwardMsg.FromString(await stream.recv())
            kind = message.WhichOneof("type")
            if kind == "script_finished" and message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
                return "\n".join(words), wrong
            if kind == "new_session":  # the theme comes from the configuration beside the script
                assert message.new_session.custom_theme.light.primary_color == "#1F5F8B"
            if kind == "delta":
                element = message.delta.new_element
                words += [element.markdown.body, element.heading.body]
                wrong += [element.exception.message] if element.WhichOneof("type") == "exception" else []
