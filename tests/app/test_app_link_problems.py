"""A link that asks for what cannot be shown says so, in one sentence for each part, once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shortviz.records.plan import Block
from shortviz.service.service import Service
from shortviz.settings import settings
from shortviz.text.tokens import DEFAULT_CALIBRATION
from shortviz.ui.session import state as s
from shortviz.ui.session.address import follow_address
from tests.support.app import App

Start = Callable[..., App]

TOLD = {
    "a block outside of the model": ({"start": "99", "n": "4"}, '"99", n "4"', "30 layers", "is chosen"),
    "no layers": ({"start": "4", "n": "0"}, 'n "0"', "30 layers"),
    "a block that is no number": ({"start": "abc", "n": "-1"}, '"abc", n "-1"', "does not name a start layer"),
    "half a block": ({"start": "7"}, 'start "7", n ""', "does not name a start layer"),
    "a criterion": ({"criterion": "zzz"}, 'criterion "zzz"', "usual one is shown"),
    "a scale": ({"scale": "log"}, 'scale "log"'),
    "a view": ({"view": "Globe"}, 'view "Globe"'),
    "a run": ({"run": "nothere"}, 'run "nothere" cannot be opened', "the bundled run is shown"),
    "a run that is a path": ({"run": "../../etc"}, 'run "../../etc" cannot be opened'),
    "a model": ({"model": "a\0b"}, 'model "a?b" cannot be', "the bundled run is shown"),
    "an endless model": ({"model": "x" * 400}, 'model "' + "x" * 37 + '..."'),
    "a precision": ({"model": "demo", "dtype": "int1"}, 'precision "int1"', "auto is chosen"),
    "a device": ({"model": "demo", "device": "toaster"}, 'device "toaster"', "auto is chosen"),
    "a text that was uploaded": ({"text": "file"}, "calibration text of this page was uploaded", "give it again"),
    "a text that was pasted": ({"eval": "paste"}, "evaluation text of this page was uploaded or pasted", "give it"),
    "a calibration text": ({"text": "file:/etc/passwd"}, 'calibration text "file:/etc/passwd"', "usual text"),
    "an evaluation text": ({"eval": "builtin:passages?limit=0"}, 'evaluation text "builtin:passages?limit=0"'),
    "a job": ({"job": "0123456789ab"}, 'job "0123456789ab" is not known any more'),
    "markup": ({"view": "![x](http://x/y.png)"}, '"![x](http://x/y.png)"'),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_a_link_asks_for_in_vain_is_told_once(name: str, app: Start, tools: Service) -> None:
    parameters, *words = TOLD[name]
    page = app(**parameters)
    (said,) = page.errors
    for word in words:
        assert word in said
    assert said.count(". ") == 0, "one sentence"
    assert tools.jobs.jobs() == ()
    assert page.at.get("plotly_chart")
    assert not page.run().errors


def test_the_block_that_is_chosen_instead_is_the_one_named(app: Start) -> None:
    page = app(start="99", n="4")
    chosen = page.state[s.CHOSEN]
    assert f"start {chosen.start}, n {chosen.n} is chosen" in page.errors[0]
    assert page.at.query_params["start"] == str(chosen.start)


def test_every_wrong_part_is_told_up_to_three(app: Start) -> None:
    (said,) = app(start="abc", n="-1", criterion="zzz").errors
    assert said.count("The link's") == 2
    (said,) = app(start="abc", n="-1", criterion="zzz", run="nothere", scale="log", view="Globe").errors
    assert said.count("The link's") == 3
    assert said.endswith("2 more parts of the link could not be read.")


def test_a_right_link_is_told_nothing_nor_one_with_parameters_of_others(app: Start) -> None:
    right = {"start": "4", "n": "7", "criterion": "block_influence", "scale": "value", "palette": "viridis"}
    right |= {"view": "Table", "show": "measured", "metric": "kl", "text": "builtin:passages", "run": "example"}
    assert app(**right, utm_source="mail", fbclid="x" * 500).errors == []
    assert app(utm_source="mail").errors == []


def test_the_address_that_the_app_writes_itself_is_told_nothing(app: Start) -> None:
    page = app(model="demo", criterion="block_influence", start="4", n="7")
    written = {key: value for key, value in page.at.query_params.items()}
    assert written["start"] == "4"
    assert app(**written).errors == []


def test_a_criterion_that_the_run_has_not_is_told(app: Start, tools: Service) -> None:
    run = tools.runs.get("example")
    assert run is not None
    assert run.distances is not None
    few = {"angular_mean": run.distances.criteria["angular_mean"]}
    tools.runs.put("few", replace(run, distances=replace(run.distances, criteria=few)))
    page = app(run="few", criterion="block_influence")
    (said,) = page.errors
    assert "This run has no block influence" in said
    assert "another criterion is shown" in said


def test_other_pages_tell_it_too(app: Start) -> None:
    for first in ("model", "heal", "export", "runs"):
        page = app(first, start="99", n="4")
        assert any('"99", n "4"' in said for said in page.errors), first


def test_a_lesson_that_is_none_is_told_once(app: Start) -> None:
    page = app("learn", step="Nope")
    assert any('lesson "Nope"' in said for said in page.errors)
    assert page.state[s.STEP] == "Stream"
    assert not page.run().errors


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"HOSTED": "1", "RUNS_DIR": str(tmp_path / "hosted"), "MIN_FREE_MB": "0"}.items():
        monkeypatch.setenv(f"SHORTVIZ_{name}", value)
    settings.cache_clear()


@pytest.mark.usefixtures("hosted")
def test_hosted_nothing_is_told_of_jobs_and_the_same_of_every_run_that_is_not_opened(
    app: Start, tools: Service
) -> None:
    try:
        assert app(job="0123456789ab").errors == []
        unreadable = tools.runs.path("somebodys")
        unreadable.mkdir(parents=True)
        (unreadable / "run.json").write_text("{", encoding="utf-8")
        one, other = (app(run=key).errors[0] for key in ("somebodys", "nobodys"))
        assert one.replace("somebodys", "nobodys") == other
        (said,) = app(text="dataset:org/rows").errors
        assert "does not read the data set" in said
        assert "calibration text is chosen" in said
        assert app(text="builtin:passages").state[s.CALIBRATION] != DEFAULT_CALIBRATION
    finally:
        settings.cache_clear()


def load(page: App) -> list[str]:
    """Load the chosen model on the Model page; return what that page then tells."""
    page.page("model").click("estimate_button")
    assert page.finish("size").state == "done"
    page.click("load_button")
    assert page.finish("load").state == "done"
    return page.errors


def test_a_block_of_a_model_that_is_loaded_only_later_is_told_then_and_once(app: Start, tiny_folder: Path) -> None:
    page = app(model=str(tiny_folder), start="99", n="2")
    assert page.errors == []
    (told,) = load(page)
    chosen = page.state[s.CHOSEN]
    assert told.startswith('The link\'s block (start "99", n "2") is not a block of this model\'s')
    assert f"start {chosen.start}, n {chosen.n} is chosen" in told
    assert page.page("map").errors == []


def test_a_wrong_block_gone_back_to_before_the_model_is_loaded_is_told_too(
    app: Start, tools: Service, tiny_folder: Path
) -> None:
    page = app(model=str(tiny_folder), start="1", n="2")
    state = {key: page.state[key] for key in (s.REF, s.CHOSEN)}
    follow_address(tools, state, {"start": "99", "n": "2"})
    page.state[s.CHOSEN], page.state[s.LINKED_BLOCK] = state[s.CHOSEN], state[s.LINKED_BLOCK]
    (told,) = load(page)
    assert told.startswith('The link\'s block (start "99", n "2") is not a block of this model\'s')


def test_a_right_block_of_a_model_that_is_loaded_only_later_is_chosen(app: Start, tiny_folder: Path) -> None:
    page = app(model=str(tiny_folder), start="1", n="2")
    assert load(page) == []
    assert page.page("map").state[s.CHOSEN] == Block(start=1, n=2)
