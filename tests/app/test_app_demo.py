"""The demo model for real, in the app: loaded from the status line, a block clicked, its numbers read."""

from collections.abc import Callable

import pytest

from shortviz.records.text import TextSpec
from shortviz.service.service import Service
from shortviz.ui.session import state as s
from tests.support.app import App

PROSE = "The keeper of the light wrote down the weather every evening, and every evening it was different. " * 60


@pytest.mark.demo
def test_the_bundled_run_becomes_live_when_its_model_is_loaded(app: Callable[..., App], tools: Service) -> None:
    page = app(start="12", n="4")
    page.state[s.EVALUATION] = TextSpec(kind="paste", value=PROSE)
    page.state[s.PROMPT] = "The capital of France is"
    page.click("load_shown")
    assert page.finish("load").state == "done"
    assert "30 layers · float32 · cpu" in page.words
    found = page.finish("evaluate").result
    assert found.evaluation.complete
    assert found.evaluation.removed == (12, 13, 14, 15)
    assert 0.1 < found.evaluation.nll_increase < 5
    assert "Paris" in found.uncut
    assert "steady" in page.words
