"""The app in a test: the real pages, real jobs in real threads, a bench of its own per test."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from shortviz.job_state import JobState
from shortviz.records import TextSpec
from shortviz.ui import state as s
from shortviz.ui.bench import bench
from shortviz.ui.resources import Bench
from shortviz.ui.shelves import RunShelf

ROOT = Path(__file__).resolve().parents[2]
JOB_SECONDS = 300
TEXT = "The river carries what the hills let go, and the mill turns it into bread. " * 40


class App:
    """An AppTest with the words that tests need; it opens on the map unless `first_page` says otherwise."""

    def __init__(self, first_page: str = "map", **parameters: str) -> None:
        self.at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
        if first_page:
            self.at.switch_page(f"pages/{first_page}.py")
        for key, value in parameters.items():
            self.at.query_params[key] = value
        self.run()

    def run(self) -> "App":
        self.at.run()
        assert not self.at.exception, [e.value for e in self.at.exception]
        return self

    def page(self, name: str) -> "App":
        self.at.switch_page(f"pages/{name}.py")
        return self.run()

    @property
    def state(self):  # noqa: ANN201  (AppTest's session state has no public type)
        return self.at.session_state

    def number(self, name: str):  # noqa: ANN201  (AppTest's widgets have no public type)
        """The number input of the block: `start` or `n`."""
        return next(w for w in self.at.number_input if w.label == name)

    def click(self, key: str) -> "App":
        self.at.button(key=key).click()
        return self.run()

    def finish(self, kind: str) -> JobState:
        """Wait for the newest job of a kind, and let the page see how it ended."""
        found = bench().jobs.wait(self.state["jobs"][kind], JOB_SECONDS)
        assert found is not None
        assert not found.live, found
        self.run()
        return found

    @property
    def errors(self) -> list[str]:
        return [plain(e.value) for e in self.at.error]

    @property
    def words(self) -> str:
        """Everything the page says in text, without its markup."""
        kinds = (self.at.markdown, self.at.caption, self.at.subheader, self.at.text, self.at.warning, self.at.success)
        return "\n".join(plain(str(e.value)) for kind in kinds for e in kind)


def plain(markdown: str) -> str:
    return markdown.replace("\\", "")


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[Bench]:
    """A bench that no other test has used, with a folder of runs of its own."""
    logging.getLogger("streamlit").setLevel(logging.ERROR)  # it warns about calls outside of a page, which tests make
    st.cache_resource.clear()
    bench().runs = RunShelf(tmp_path / "runs")
    yield bench()
    st.cache_resource.clear()


@pytest.fixture
def app(tools: Bench) -> Callable[..., App]:
    """Start a session of the app, at an address if parameters are given."""
    return App


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with a tiny random model and a tokenizer that reads anything."""
    from tests.families import build_tiny, tiny_tokenizer

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-llama"
    build_tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def loaded(tools: Bench, app: Callable[..., App], tiny_folder: Path) -> App:
    """A session whose tiny model is loaded, with short texts."""
    page = app(model=str(tiny_folder)).page("model")
    page.click("estimate_button")
    assert page.finish("estimate").state == "done"
    page.click("load_button")
    assert page.finish("load").state == "done"
    page.state[s.CALIBRATION] = TextSpec(kind="paste", value=TEXT, max_length=64)
    page.state[s.EVALUATION] = TextSpec(kind="paste", value=TEXT)
    return page


@pytest.fixture
def measured(loaded: App) -> App:
    """The same session on the map, after a measurement."""
    page = loaded.page("map")
    page.click("measure_button")
    assert page.finish("measure").state == "done"
    return page
