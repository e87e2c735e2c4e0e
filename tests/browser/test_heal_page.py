"""Repairing and healing a tiny model for real, in a real Chromium: live, through a reload, to the export."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, expect

from tests.support.app_server import PATIENCE_MS, AppServer
from tests.support.paths import ROOT
from tests.support.visitor import SLOW_MS, no_failure, to_page, type_number, wait_for_block

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.families import build_tiny, tiny_tokenizer

    folder = tmp_path_factory.mktemp("heal") / "tiny-llama"
    build_tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_cut_is_repaired_and_healed_live_and_what_was_learned_is_exported_alone(
    page: Page, start_app: Callable[[Path], AppServer], checkpoint: Path, tmp_path: Path
) -> None:
    server = start_app(ROOT / "app.py")
    page.goto(f"{server.url}/heal?{urlencode({'model': str(checkpoint), 'start': 2, 'n': 2})}")
    page.get_by_role("button", name=re.compile("^Load ")).click()
    repair = page.get_by_role("button", name="Repair", exact=True)
    expect(repair).to_be_enabled(timeout=SLOW_MS)
    wait_for_block(page, 2, 2)
    repair.click()
    expect(page.get_by_role("figure", name=re.compile("Cutting layers 2-3 costs"))).to_be_visible(timeout=SLOW_MS)
    heal = page.get_by_role("button", name="Train", exact=True)
    expect(heal).to_be_enabled(timeout=SLOW_MS)

    page.get_by_text("Settings of the training").click()
    type_number(page, "Tokens a window", 64)
    type_number(page, "Held-out every", 5)
    expect(page.get_by_text("50 steps of 64 tokens")).to_be_visible(timeout=PATIENCE_MS)
    heal.click()
    curve = page.get_by_role("figure", name=re.compile(r"After \d+ of 50 steps the held-out NLL"))
    expect(curve).to_be_visible(timeout=SLOW_MS)
    page.reload()  # the training goes on, or has ended, without the page
    expect(page.get_by_role("figure", name=re.compile("After 50 of 50 steps"))).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_role("figure", name=re.compile("healed .* wins back|no share"))).to_be_visible(timeout=SLOW_MS)
    no_failure(page)

    to_page(page, "Export")
    expect(page.get_by_text("Which model")).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_text("The adapter alone").click()
    expect(page.get_by_role("heading", name="Adapter")).to_be_visible(timeout=PATIENCE_MS)
    folder = page.get_by_role("textbox", name="Folder, new or empty")
    folder.fill(str(tmp_path / "adapter"))
    folder.press("Enter")
    expect(page.get_by_text(f"--adapter {tmp_path}/adapter")).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_role("button", name="Export", exact=True).click()
    expect(page.get_by_text(f"Written to {tmp_path}/adapter;")).to_be_visible(timeout=SLOW_MS)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    no_failure(page)
    assert "Traceback" not in server.printed
