"""The first screen in a real browser: the bracket is dragged and typed, and what it says is the stored data's."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from shortviz.lessons.data import lesson_data
from shortviz.runs.run import example_run
from shortviz.ui.parts.stack import stack_data
from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.paths import ROOT

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(start_app) -> AppServer:
    return start_app(Path(ROOT / "app.py"))


def stored(start: int, n: int) -> tuple[str, str, str]:
    """Return the uncut text, the cut one and the price that the screen shows for the first prompt."""
    run = example_run()
    assert run.losses is not None
    data = stack_data(run.model, run.losses, lesson_data().texts)
    text = "".join(part for part, _ in data["texts"][n - 1][start][0])
    return data["uncut"][0], text, " ".join(data["prices"][n - 1][start])


def shows(page: Page, start: int, n: int) -> None:
    uncut, cut, price = stored(start, n)
    stack = page.locator(".stack")
    for name, text in ((".uncut", uncut), (".cut", cut), (".price", price)):
        expect(stack.locator(name)).to_have_text(" ".join(text.split()))


def test_the_bracket_moves_by_drag_and_by_keys_without_asking_the_server(page: Page, server: AppServer) -> None:
    sent: list[str] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda _: sent.append("frame")))
    page.on("request", lambda request: sent.append(request.url))
    page.goto(server.url)
    bracket, end = page.locator(".stack .bracket"), page.locator(".stack .end.top")
    start, n = int(bracket.get_attribute("aria-valuenow") or ""), int(end.get_attribute("aria-valuenow") or "")
    shows(page, start, n)
    assert sent
    sent.clear()
    box, bar = bracket.bounding_box(), page.locator(".stack .bar").first.bounding_box()
    assert box is not None
    assert bar is not None
    x, y = box["x"] + 30, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 6 * bar["height"], steps=4)
    page.mouse.up()
    shows(page, start - 6, n)
    bracket.press("ArrowUp")
    shows(page, start - 5, n)
    end.press("ArrowDown")
    shows(page, start - 5, n - 1)
    bracket.press("Home")
    shows(page, 0, n - 1)
    assert sent == []


def test_the_chosen_cut_opens_on_the_map(page: Page, server: AppServer) -> None:
    page.goto(server.url)
    page.locator(".stack .bracket").press("End")
    n = int(page.locator(".stack .end.top").get_attribute("aria-valuenow") or "")
    page.locator(".stack .open").click()
    page.wait_for_url(f"**/map?*start={30 - n}*")
    expect(page.get_by_text(f"start {30 - n}, n {n}").first).to_be_visible()


def test_pages_have_titles_and_a_heading_of_their_own_and_fetch_nothing_from_elsewhere(
    page: Page, server: AppServer
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for path, title, heading in (
        ("/", "shortviz", "Which layers of a language model can go?"),
        ("/learn", "Learn · shortviz", "Learn"),
        ("/model", "Model · shortviz", "Model"),
        ("/map", "Map · shortviz", "Map"),
        ("/heal", "Heal · shortviz", "Heal"),
        ("/export", "Export · shortviz", "Export"),
        ("/runs", "Runs · shortviz", "Runs"),
    ):
        page.goto(server.url + path)
        expect(page).to_have_title(title, timeout=PATIENCE_MS)
        expect(page.locator("h1")).to_have_text([heading], timeout=PATIENCE_MS)
    assert asked
    assert [url for url in asked if not url.startswith((server.url, "data:", "blob:"))] == []
