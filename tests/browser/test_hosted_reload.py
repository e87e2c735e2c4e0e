"""A hosted server: who reloads finds the job that they left running, in every tab of their browser; others do not."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect

from shortviz.server.start import SCRIPTS
from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.visitor import NOT_MEASURED, SLOW_MS, load_demo, no_failure, rows_done, start_measuring

pytestmark = [pytest.mark.browser, pytest.mark.demo, pytest.mark.timeout(1500)]
ROWS = 164


@pytest.fixture(scope="module")
def server(start_app: Callable[[Path], AppServer]) -> Iterator[AppServer]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SHORTVIZ_HOSTED", "1")
        environment.setenv("SHORTVIZ_MIN_FREE_MB", "0")
        yield start_app(SCRIPTS / "asgi_app.py")


def test_a_visitor_who_reloads_sees_their_job_and_another_visitor_does_not(
    new_visitor: Callable[[], BrowserContext], server: AppServer
) -> None:
    visitor = new_visitor()
    page = visitor.new_page()
    load_demo(page, server, rows=ROWS, length=256)
    start_measuring(page)
    before = rows_done(page, ROWS)
    assert "job=" not in page.url, "an address that is passed on must not name the job"
    (secret,) = [cookie for cookie in visitor.cookies() if cookie["name"] == "shortviz_visitor"]
    assert secret["httpOnly"]
    assert secret["sameSite"] == "Lax"

    page.reload()
    assert rows_done(page, ROWS) >= before
    second = visitor.new_page()
    second.goto(f"{server.url}/map")
    assert rows_done(second, ROWS) >= before

    stranger = new_visitor().new_page()
    stranger.goto(page.url)
    expect(stranger.get_by_text(NOT_MEASURED)).to_be_visible(timeout=PATIENCE_MS)
    expect(stranger.get_by_text("demo · 30 layers")).to_be_visible(timeout=PATIENCE_MS)
    expect(stranger.get_by_text(re.compile(rf"of {ROWS} rows"))).to_have_count(0)
    main = "stMainBlockContainer"
    expect(stranger.get_by_test_id(main).get_by_role("button", name="Stop", exact=True)).to_have_count(0)

    stop = second.get_by_test_id(main).get_by_role("button", name="Stop", exact=True)
    expect(stop).to_be_enabled(timeout=PATIENCE_MS)
    stop.click()
    expect(stop).to_have_count(0, timeout=SLOW_MS)
    no_failure(second)
    assert "Traceback" not in server.printed


def test_of_two_visitors_with_the_same_measurement_one_stops_and_the_other_reloads_and_gets_it(
    new_visitor: Callable[[], BrowserContext], server: AppServer
) -> None:
    main, rows = "stMainBlockContainer", 96
    ann, bob = (new_visitor().new_page() for _ in range(2))
    for page in (ann, bob):
        load_demo(page, server, rows=rows, length=256)
    start_measuring(ann)
    start_measuring(bob)
    seen = rows_done(bob, rows)
    ann.get_by_test_id(main).get_by_role("button", name="Stop", exact=True).click()
    expect(ann.get_by_text(re.compile("stopped; others go on with it"))).to_be_visible(timeout=PATIENCE_MS)
    again = re.compile("^(Measure|Go on)$")  # by whether the other's work has kept something on the disk by now
    expect(ann.get_by_test_id(main).get_by_role("button", name=again)).to_be_visible(timeout=PATIENCE_MS)
    bob.reload()
    assert rows_done(bob, rows) >= seen, "the other's work goes on, and a reload finds it"
    expect(bob.get_by_text(re.compile(rf"Averaged over {rows} rows"))).to_be_visible(timeout=SLOW_MS)
    for page in (ann, bob):
        no_failure(page)
    assert "Traceback" not in server.printed
