"""Each page on the bundled run, without any model: what it says, and that nothing heavy is imported for it."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from shortviz.records.formatting import times
from shortviz.records.plan import Block
from shortviz.runs.run import EXAMPLES, example_run, save_run
from shortviz.service.service import Service
from shortviz.ui.pages.learn import STEPS
from shortviz.ui.session import state as s
from tests.support.app import App, disabled_widgets, view
from tests.support.paths import ROOT
from tests.support.records import fixture_run

Start = Callable[..., App]


def test_the_first_visit_shows_the_bundled_run_and_says_so(app: Start) -> None:
    first = app()
    assert "No model loaded: **bundled run** of demo" in first.words
    (chart,) = first.at.get("plotly_chart")
    assert "the blocks that change demo (30 layers) least are" in chart.proto.alt
    assert "2,040 tokens a block of built-in passages" in first.words
    assert "64 rows of built-in python-reference" in app(criterion="angular_last").words


def test_the_first_visit_imports_neither_torch_nor_transformers() -> None:
    program = (
        "import sys; from tests.support.app import App; "
        "App(first_page='').page('map').page('runs'); assert 'shortviz.ui.pages.runs' in sys.modules; "
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_block_is_chosen_from_the_start(app: Start) -> None:
    first = app()
    start, n = (first.number(name).value for name in ("start", "n"))
    assert first.at.query_params["start"] in (str(start), [str(start)])
    assert f"(start {start}, n {n})" in first.words


def test_an_address_restores_block_criterion_and_scale(app: Start) -> None:
    linked = app(start="12", n="8", criterion="block_influence", scale="value")
    assert "Removes layers 12-19 (start 12, n 8)" in linked.words
    assert "block influence **" in linked.words
    assert linked.state["scale"] == "value"


@pytest.mark.parametrize("name", ["Stream", "Limits", "model", "map", "heal", "export", "runs"])
def test_every_disabled_widget_says_why_it_is_disabled(app: Start, name: str) -> None:
    page = app(first_page="", step=name) if name in STEPS else app(first_page=name, start="12", n="4")
    found = disabled_widgets(page)
    views = [w for w in page.at.segmented_control if w.key == s.VIEW]
    for what in views[0].options[1:] if views else ():
        found += disabled_widgets(view(page, what))
    if name == "runs":
        page.at.multiselect(key=s.PICKED).set_value(list(EXAMPLES))
        found += disabled_widgets(page.run())
    assert found or name == "model", "the check has something to look at"
    assert [label for label, why in found if not why] == []
    assert name not in ("map", "heal") or any(label.startswith("Prompt, continued by") for label, _ in found)


@pytest.mark.parametrize("bad", [{"start": "99"}, {"n": "x"}, {"criterion": "best"}, {"job": "none"}, {"run": "../.."}])
def test_a_wrong_address_is_passed_over(app: Start, bad: dict[str, str]) -> None:
    assert "Removes layer" in app(**bad).words


def test_typing_start_and_n_moves_the_choice_everywhere(app: Start) -> None:
    page = app()
    page.number("start").set_value(5)
    page.run()
    page.number("n").set_value(2)
    page.run()
    assert "Removes layers 5-6 (start 5, n 2)" in page.words
    assert "(start 5, n 2)" in page.page("export").words


def test_a_block_that_does_not_fit_is_explained_and_nothing_is_lost(app: Start) -> None:
    page = app(start="28", n="4")
    assert page.errors == ["Block start 28, n 4 does not fit: the model has layers 0-29, so start can be 0-26 for n 4."]
    assert page.at.get("plotly_chart")
    page.number("start").set_value(26)
    assert page.run().errors == []


def test_removing_every_layer_is_explained(app: Start) -> None:
    page = app(start="0", n="30")
    assert "This removes every layer" in page.words
    assert page.page("export").errors == ["The plan removes all 30 layers; keep at least one."]


def test_a_block_with_a_sink_layer_is_warned_about(app: Start) -> None:
    assert "Removes layer 11, which writes the attention sink" in app(start="11", n="1").words
    assert "attention sink" not in app(start="12", n="1").words


def test_without_a_model_the_buttons_that_need_one_are_off(app: Start) -> None:
    page = app()
    assert page.at.button(key="measure_button").disabled
    assert page.at.button(key="run_prompt").disabled
    assert not page.at.button(key="load_shown").disabled


@pytest.mark.parametrize("view", ["Table", "Best per n"])
def test_the_other_views_show_the_same_map(app: Start, view: str) -> None:
    page = app(view=view)
    assert len(page.at.dataframe) == 1
    assert not page.at.get("plotly_chart")


def test_a_saved_run_is_listed_and_opens_by_its_address(tools: Service, app: Start) -> None:
    save_run(fixture_run(12), tools.runs.folder / "twelve-layers")
    assert "twelve" not in app().words
    listed = app().page("runs")
    assert "formula" in list(listed.at.dataframe[0].value["name"])
    opened = app(run="twelve-layers")
    assert "(12 layers)" in opened.at.get("plotly_chart")[0].proto.alt
    assert "No model loaded: **run formula** of demo" in opened.words


def test_a_measured_block_of_a_saved_run_shows_its_numbers_without_the_model(tools: Service, app: Start) -> None:
    save_run(fixture_run(24), tools.runs.folder / "measured")
    page = app(run="measured", start="12", n="3")
    metrics = {m.label: m.value for m in page.at.metric}
    assert metrics["Perplexity"] == "× 1.92"
    assert metrics["Loss, nats per token"] == "+0.650 ± 0.030"
    assert "perplexity 35.9 → 68.7 · 8,176 tokens scored" in page.words
    assert any("the perplexity of the cut model has an error of ±" in c.proto.help for c in page.at.caption)
    assert metrics["Same next token"] == "61.0 ± 1.5 %"
    assert "8,176 tokens scored" in page.words
    assert "steady" in page.words
    export = app(first_page="export", run="measured", start="12", n="3")
    assert "The cut as it is, nothing repaired: **perplexity × 1.92 (+0.650 ± 0.030 nats)**." in export.words
    mapped = app(first_page="export", start="17", n="9")
    losses = example_run().losses
    assert losses is not None
    price = times(*losses.increase.at(Block(start=17, n=9)))
    assert f"The cut as it is, nothing repaired: **perplexity {price}**, by the map." in mapped.words


def test_a_run_that_cannot_be_read_is_named(tools: Service, app: Start) -> None:
    folder = tools.runs.folder / "broken"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{", encoding="utf-8")
    page = app()
    page.state[s.RUN] = "broken"
    assert "is not a run of shortviz" in page.run().errors[0]


def test_names_from_outside_are_never_markup(tools: Service, app: Start) -> None:
    page = app(model="![x](http://evil/?q)<b>y</b>")
    shown = "\n".join(str(e.value) for kind in (page.at.markdown, page.at.caption) for e in kind)
    assert r"\!\[x\]\(http\://evil/?q\)\<b\>y\</b\> is chosen" in shown
    assert "<b>" not in shown


def test_a_link_to_a_model_prefills_and_starts_no_work(tools: Service, app: Start) -> None:
    page = app(model="some/model", rev="main", dtype="bfloat16", device="cuda:1")
    assert "some/model is chosen" in page.words
    model = page.page("model")
    assert model.state["model_id"] == "some/model"
    assert model.state["dtype"] == "bfloat16"
    assert model.at.button(key="estimate_button")
    assert tools.jobs.jobs() == ()
