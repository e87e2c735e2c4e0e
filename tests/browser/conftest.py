"""A real Chromium on real Streamlit servers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.support.app_server import FLAGS, PATIENCE_MS, AppServer, chromium_path, start_server


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def new_visitor(browser: Browser) -> Iterator[Callable[[], BrowserContext]]:
    """Visitors with a window of 1280 x 720 each; the tabs of one visitor are the pages of its context.

    An exception that a page's script does not catch fails the test.
    """
    contexts: list[BrowserContext] = []
    uncaught: list[str] = []

    def visit() -> BrowserContext:
        context = browser.new_context(viewport={"width": 1280, "height": 720}, accept_downloads=True)
        context.set_default_timeout(PATIENCE_MS)
        context.on("weberror", lambda found: uncaught.append(f"{found.error.message}\n{found.error.stack}"))
        contexts.append(context)
        return context

    yield visit
    for context in contexts:
        context.close()
    # Thrown in the page's scripts, ours or Streamlit's: the second leaves a blank page, and no assertion could say why.
    assert not uncaught, "\n\n".join(uncaught)


@pytest.fixture
def page(new_visitor: Callable[[], BrowserContext]) -> Page:
    return new_visitor().new_page()


@pytest.fixture(scope="session")
def start_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], AppServer]]:
    """Start servers of a script, each with a run directory of its own; all are ended with the session."""
    servers: list[AppServer] = []

    def start(script: Path) -> AppServer:
        servers.append(start_server(script, tmp_path_factory.mktemp("runs")))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
