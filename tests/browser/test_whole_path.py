"""From the first visit to a downloaded checkpoint, on the real demo model, as a stranger would do it."""

import json
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.map_mouse import choose_cell, wait_for_map
from tests.support.paths import ROOT
from tests.support.visitor import SLOW_MS, load_demo, no_failure, start_measuring, to_page, wait_for_block

pytestmark = [pytest.mark.browser, pytest.mark.demo, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def server(start_app: Callable[[Path], AppServer]) -> AppServer:
    return start_app(ROOT / "app.py")


def test_from_the_first_visit_to_a_downloaded_checkpoint(page: Page, server: AppServer, tmp_path: Path) -> None:
    page.goto(f"{server.url}/map")
    wait_for_map(page)
    expect(page.get_by_text("bundled run")).to_be_visible()

    load_demo(page, server, rows=12, length=64)
    start_measuring(page)
    expect(page.get_by_text("Averaged over 12 rows")).to_be_visible(timeout=SLOW_MS)
    no_failure(page)
    wait_for_map(page)

    choose_cell(page, 30, 3, 20, (0.3, -0.3))
    wait_for_block(page, 3, 20)
    expect(page.get_by_text("Loss, nats per token")).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_text("tokens scored of built-in passages")).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_text(re.compile("Removes layer 11, which writes the attention sink"))).to_be_visible()
    no_failure(page)

    to_page(page, "Export")
    wait_for_block(page, 3, 20)
    page.get_by_text("Zip download").click()
    page.get_by_role("button", name="Export", exact=True).click()
    download = page.get_by_role("button", name="Download demo-without-3-22.zip")
    expect(download).to_be_visible(timeout=SLOW_MS)
    no_failure(page)
    with page.expect_download(timeout=PATIENCE_MS) as started:
        download.click()
    saved = tmp_path / "export.zip"
    started.value.save_as(saved)
    check_zip(saved)
    assert "Traceback" not in server.printed


def check_zip(path: Path) -> None:
    """Check that the archive holds a whole checkpoint of ten layers; that it loads was proved before it was offered."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        files = {Path(name).name: name for name in archive.namelist()}
        assert {"config.json", "generation_config.json", "tokenizer.json", "README.md", "shortviz.json"} <= set(files)
        assert json.loads(archive.read(files["config.json"]))["num_hidden_layers"] == 10
        with archive.open(files["model.safetensors"]) as weights:
            (length,) = struct.unpack("<Q", weights.read(8))
            names = set(json.loads(weights.read(length)))
    assert "model.layers.9.mlp.up_proj.weight" in names
    assert not any(name.startswith("model.layers.10.") for name in names)
