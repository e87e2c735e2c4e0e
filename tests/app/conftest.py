"""The app in a test: the real pages, real jobs in real threads, a bench of its own per test."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st

from shortviz.records.text import TextSpec
from shortviz.service.service import RunStore, Service
from shortviz.ui.session import state as s
from shortviz.ui.session.service import bench
from tests.support.app import TEXT, App


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[Service]:
    """A bench that no other test has used, with a folder of runs of its own."""
    logging.getLogger("streamlit").setLevel(logging.ERROR)  # it warns about calls outside of a page, which tests make
    st.cache_resource.clear()
    bench().runs = RunStore(tmp_path / "runs")
    yield bench()
    bench().jobs.close(wait_seconds=60)  # a job that still imports torch would race with the next test's imports
    st.cache_resource.clear()


@pytest.fixture
def app(tools: Service) -> Callable[..., App]:
    """Start a session of the app, at an address if parameters are given."""
    return App


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with a tiny random model and a tokenizer that reads anything."""
    from tests.support.families import build_tiny, tiny_tokenizer

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-llama"
    build_tiny("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def loaded(tools: Service, app: Callable[..., App], tiny_folder: Path) -> App:
    """A session whose tiny model is loaded, with short texts."""
    page = app(model=str(tiny_folder)).page("model")
    page.click("estimate_button")
    assert page.finish("size").state == "done"
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
