"""A Streamlit server of our own on a free port of this machine, ended by its own handle."""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

# Those the design verified, UI.md 1.6.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 60_000
"""How long a browser test waits for something to appear before it fails; two busy cores are slow."""


def chromium_path() -> str | None:
    """Return the Chromium on the PATH; None leaves it to Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(kw_only=True)
class AppServer:
    """The running server and what it has printed."""

    process: subprocess.Popen[str]
    url: str
    runs_dir: Path
    lines: list[str]
    reader: threading.Thread

    @property
    def printed(self) -> str:
        return "".join(self.lines)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)
        self.reader.join(20)
        assert self.process.stdout is not None
        self.process.stdout.close()


def start_server(script: Path, runs_dir: Path) -> AppServer:
    """Start Streamlit and return when it says that it listens."""
    port = free_port()
    options = {
        "server.port": port,
        "server.address": "127.0.0.1",
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
    }
    command = [sys.executable, "-m", "streamlit", "run", str(script)]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "SHORTVIZ_RUNS_DIR": str(runs_dir),
    }
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: list[str] = []
    listening = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if re.search(r"URL: http", line):
                listening.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    server = AppServer(process=process, url=f"http://127.0.0.1:{port}", runs_dir=runs_dir, lines=lines, reader=reader)
    if not listening.wait(PATIENCE_MS / 1000):
        server.stop()
        raise RuntimeError(f"Streamlit did not start:\n{server.printed}")
    return server
