"""Many visitors at a time on one server, exploring the bundled run; and the first paint of every page in a browser.

    PYTHONPATH=. python benchmarks/visitors.py [--visitors 20] [--seconds 30] [--waves 3] [--no-browser]

A visitor is a WebSocket client that speaks Streamlit's protocol: it fetches the page's files as a browser does, opens a
session, and then chooses blocks, criteria and pages at random with pauses between. A page is ready when the server has
sent everything of it (its script has finished, and no exception was among its elements). Twenty real browsers on the
same cores would measure the browsers. Drawing is measured apart, with one Chromium and nobody else on the server.
Memory is the server's resident set: idle after one visitor, with all of them, and after they have left, wave by wave.
Everything stays on 127.0.0.1. Needs Playwright and a Chromium unless --no-browser. A table, then one JSON line.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import psutil
import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from shortviz import criteria
from shortviz.files import versions
from shortviz.records.table import Table, left, right
from shortviz.server.start import SCRIPTS
from tests.support.app_server import FLAGS, PATIENCE_MS, AppServer, chromium_path, start_server

EXPLORED = ("learn", "map", "heal", "export", "runs")
"""Pages that a bundled run fills; Model would start an estimate, which imports torch."""
THINK_SECONDS = (0.5, 3.0)
LIMIT_SECONDS, LIMIT_MB, LIMIT_PAINT = 3.0, 10.0, 1.5


@dataclass
class Visit:
    """What one visitor met with."""

    opened: list[float] = field(default_factory=list)
    pages: list[float] = field(default_factory=list)
    choices: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Visitor:
    """One session over a WebSocket."""

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.random, self.visit = url, random.Random(seed), Visit()
        self.page, self.hashes, self.inputs = "", {}, {}

    async def stay(self, seconds: float) -> Visit:
        """Come, explore and leave."""
        started = time.perf_counter()
        await asyncio.to_thread(fetch_files, self.url)
        address = self.url.replace("http", "ws", 1) + "/_stcore/stream"
        async with websockets.connect(address, max_size=None, subprotocols=["streamlit"], ping_interval=None) as socket:
            await self.rerun(socket, {})
            self.visit.opened.append(time.perf_counter() - started)
            ends = time.perf_counter() + seconds
            while time.perf_counter() < ends:
                await asyncio.sleep(self.random.uniform(*THINK_SECONDS))
                await self.act(socket)
        return self.visit

    async def act(self, socket: websockets.ClientConnection) -> None:
        """Go to another page, or choose something on this one."""
        started = time.perf_counter()
        if self.random.random() < 0.3 or "start" not in self.inputs:
            self.page = self.random.choice([name for name in EXPLORED if name in self.hashes])
            await self.rerun(socket, {})
            self.visit.pages.append(time.perf_counter() - started)
            return
        block = {"start": self.random.randrange(0, 20), "n": self.random.randrange(1, 10)}
        await self.rerun(socket, block, {"criterion": self.random.choice(criteria.names())})
        self.visit.choices.append(time.perf_counter() - started)

    async def rerun(
        self, socket: websockets.ClientConnection, block: dict[str, int], query: dict[str, str] | None = None
    ) -> None:
        """Ask for the page, with these numbers typed; return when the server has sent all of it."""
        message = BackMsg()
        state = message.rerun_script
        state.query_string = urlencode(query or {})
        state.page_script_hash = self.hashes.get(self.page, "")
        for name, value in block.items():
            widget = state.widget_states.widgets.add()
            widget.id, widget.double_value = self.inputs[name], float(value)
        await socket.send(message.SerializeToString())
        self.inputs = {}
        async with asyncio.timeout(60):
            while not self.heard(ForwardMsg.FromString(await socket.recv())):
                pass

    def heard(self, message: ForwardMsg) -> bool:
        """Note what a message says; True where it ends the script."""
        kind = message.WhichOneof("type")
        if kind == "navigation":
            self.hashes = {page.url_pathname: page.page_script_hash for page in message.navigation.app_pages}
        elif kind == "delta" and message.delta.WhichOneof("type") == "new_element":
            element = message.delta.new_element
            if element.WhichOneof("type") == "exception":
                self.visit.errors.append(element.exception.message)
            elif element.WhichOneof("type") == "number_input" and element.number_input.label in ("start", "n"):
                self.inputs[element.number_input.label] = element.number_input.id
        if kind == "script_finished" and message.script_finished == ForwardMsg.FINISHED_WITH_COMPILE_ERROR:
            self.visit.errors.append("compile error")
        # FINISHED_EARLY_FOR_RERUN is followed by the run that counts.
        return kind == "script_finished" and message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY


def fetch_files(url: str) -> int:
    """Fetch the page and the scripts and styles it names, as a browser without a cache does; return the bytes."""
    with urllib.request.urlopen(f"{url}/", timeout=60) as answer:
        html = answer.read().decode()
    total = len(html)
    for path in re.findall(r'(?:src|href)="\./(static/[^"]+\.(?:js|css))"', html):
        request = urllib.request.Request(f"{url}/{path}", headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            total += len(answer.read())
    return total


async def wave(url: str, visitors: int, seconds: float, seed: int, server: psutil.Process) -> tuple[list[Visit], float]:
    """Return what each visitor met with, and the most memory the server took meanwhile, in MB."""
    peak = 0.0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, megabytes(server))
            await asyncio.sleep(0.2)

    watcher = asyncio.create_task(watch())
    found = await asyncio.gather(
        *(Visitor(url, seed + number).stay(seconds) for number in range(visitors)), return_exceptions=True
    )
    watcher.cancel()
    visits = [one if isinstance(one, Visit) else Visit(errors=[repr(one)]) for one in found]
    return visits, peak


def megabytes(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6


def first_paints(server: AppServer) -> dict[str, dict[str, float]]:
    """Return, per page, seconds from navigation to the first contentful paint and to the first words of the page."""
    from playwright.sync_api import sync_playwright

    found = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        page = browser.new_context(viewport={"width": 1280, "height": 720}).new_page()
        page.set_default_timeout(PATIENCE_MS)
        for name in ("map", *EXPLORED, "model"):  # the first one fills the browser's cache
            started = time.perf_counter()
            page.goto(f"{server.url}/{name}", wait_until="commit")
            page.wait_for_selector('[data-testid="stMainBlockContainer"] [data-testid="stMarkdown"]')
            content = time.perf_counter() - started
            paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
            found[name] = {"paint": round(paint, 3), "content": round(content, 3)}
        browser.close()
    return found


def measure_waves(server: AppServer, options: argparse.Namespace) -> dict[str, object]:
    """Let the visitors come in waves; return times, errors and memory."""
    process = psutil.Process(server.process.pid)
    asyncio.run(wave(server.url, 1, 3.0, 0, process))  # one visitor imports what pages need
    idle = megabytes(process)
    visits: list[Visit] = []
    memory = []
    for number in range(options.waves):
        met, peak = asyncio.run(wave(server.url, options.visitors, options.seconds, 100 * number + 1, process))
        visits += met
        time.sleep(options.ttl + 5)  # Streamlit keeps a session that long after its socket closed
        memory.append({"peak": round(peak, 1), "after": round(megabytes(process), 1)})
    return {
        "idle_mb": round(idle, 1),
        "memory_mb": memory,
        "growth_mb_a_visitor": round((memory[0]["peak"] - idle) / options.visitors, 2),
        "errors": [error for visit in visits for error in visit.errors],
        "opened": [t for visit in visits for t in visit.opened],
        "pages": [t for visit in visits for t in visit.pages],
        "choices": [t for visit in visits for t in visit.choices],
    }


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long a visitor stays")
    parser.add_argument("--waves", type=int, default=3, help="how often so many come and leave")
    parser.add_argument("--ttl", type=int, default=10, help="seconds a left session is kept (Streamlit's default: 120)")
    parser.add_argument("--no-browser", action="store_true")
    options = parser.parse_args()
    os.environ |= {"SHORTVIZ_HOSTED": "1", "SHORTVIZ_PRELOAD": "0"}  # torch, once imported, would count as growth
    os.environ["STREAMLIT_SERVER_DISCONNECTED_SESSION_TTL"] = str(options.ttl)
    load = [round(os.getloadavg()[0], 1)]
    with tempfile.TemporaryDirectory() as runs:
        server = start_server(SCRIPTS / "asgi_app.py", Path(runs))  # what `make run` serves where it is hosted
        try:
            found = measure_waves(server, options)
            paints = {} if options.no_browser else first_paints(server)
        finally:
            server.stop()
        found["tracebacks"] = server.printed.count("Traceback")
        if found["tracebacks"]:
            print(server.printed[-3000:])
    load.append(round(os.getloadavg()[0], 1))
    rows = []
    for name in ("opened", "pages", "choices"):
        values = found.pop(name)
        found[f"{name}_p95"] = slow = round(percentile(values, 0.95), 3)
        rows.append(
            [name, *(f"{value:.2f}" for value in (statistics.median(values), slow, max(values))), str(len(values))]
        )
    print(Table(left("seconds until ready") + right("median", "p95", "most", "of"), rows).text())
    print(f"\nmemory: {found['idle_mb']} MB with nobody; per wave {found['memory_mb']}")
    print(f"growth: {found['growth_mb_a_visitor']} MB a visitor; {len(found['errors'])} errors: {found['errors'][:3]}")
    for name, times in paints.items():
        print(f"{name:10} first paint {times['paint']:.2f} s, content {times['content']:.2f} s")
    kept = all(found[f"{name}_p95"] < LIMIT_SECONDS for name in ("opened", "pages", "choices"))
    kept = kept and found["growth_mb_a_visitor"] < LIMIT_MB and not found["errors"]
    painted = all(times["paint"] < LIMIT_PAINT for times in list(paints.values())[1:])
    print(f"limits kept: {kept}; first paint under {LIMIT_PAINT} s: {painted}; load average {load}")
    print(json.dumps({**found, "paints": paints, "visitors": options.visitors, "load": load, "versions": versions()}))


if __name__ == "__main__":
    main()
