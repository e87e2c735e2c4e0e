"""The Export page's third format: a GGUF file, of models that came as one; others are told of llama.cpp's converter."""

import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from shortviz.records.plan import Block
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.ui.session import state as s
from tests.support.app import App
from tests.support.ggufs import write_tiny


@pytest.fixture
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(os.environ, "SHORTVIZ_CACHE_DIR", str(tmp_path / "cache"))
    settings.cache_clear()
    yield
    monkeypatch.undo()
    settings.cache_clear()


def offered(page: App) -> list[str]:
    return list(page.at.segmented_control(key=s.TARGET).options)


@pytest.mark.usefixtures("_cache")
def test_a_model_that_came_as_gguf_is_exported_as_gguf(tools: Service, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path)
    page = App("model", model=str(path))
    page.click("estimate_button")
    assert page.finish("size").state == "done"
    page.click("load_button")
    assert page.finish("load").state == "done"
    page.state[s.CHOSEN] = Block(start=2, n=2)
    page = page.page("export")
    assert "A GGUF file" in offered(page)
    page.at.segmented_control(key=s.TARGET).set_value("gguf")
    page.run()
    assert "Tensors are copied as they are quantised" in page.words
    page.at.text_input(key=s.FOLDER).set_value(str(tmp_path / "cut"))
    page.run()
    assert any(f"--out {tmp_path / 'cut.gguf'}" in block.value for block in page.at.code)
    page.click("export_button")
    done = page.finish("export")

    assert done.state == "done", done.error
    assert done.result.folder == str(tmp_path / "cut.gguf")
    assert gguf.GGUFReader(tmp_path / "cut.gguf").fields["llama.block_count"].contents() == 4
    assert f"llama-cli -m {tmp_path / 'cut.gguf'}" in [block.value for block in page.at.code]
    assert "Largest logit difference 0." in page.words


def test_another_model_is_told_of_the_converter(loaded: App) -> None:
    loaded.state[s.CHOSEN] = Block(start=2, n=2)
    page = loaded.page("export")
    assert "A GGUF file" not in offered(page)
    lines = [block.value for block in page.at.code]
    assert any(line.startswith("python convert_hf_to_gguf.py ") and " --outfile " in line for line in lines)
