"""A link restores the view it was copied from, field by field; what it says is never trusted."""

from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

import pytest

from shortviz.records.model import ModelRef
from shortviz.records.plan import Block
from shortviz.records.text import TextInfo, TextSpec, text_of, text_options
from shortviz.service.service import Service
from shortviz.ui.pages import share
from shortviz.ui.session import state as s
from shortviz.ui.session.address import LINKED_KINDS, left_out, read_text, write_text
from tests.support.app import App

Start = Callable[..., App]
TEXTS = [
    TextSpec(kind="builtin", value="passages"),
    TextSpec(kind="builtin", value="passages/german", limit=3, max_length=17, bos="never"),
    TextSpec(kind="dataset", value="org/rows", subset="en&x=1?y", split="test[:5]", key="a b", limit=100_000),
]
HOSTILE = [
    "",
    ":",
    "builtin:",
    "builtin:../../etc/passwd",
    "builtin:no such text",
    "file:/etc/passwd",
    "paste:words",
    "code:print(1)",
    "builtin:passages?limit=0",
    "builtin:passages?limit=-5",
    "builtin:passages?limit=1e9",
    "builtin:passages?limit=99999999999999999999",
    "builtin:passages?limit=NaN",
    "builtin:passages?max_length=1",
    "builtin:passages?max_length=100000000",
    "builtin:passages?bos=sometimes",
    "builtin:passages?special_tokens=some",
    "dataset:org/rows?chat_template=/etc/passwd",
    "dataset:?limit=5",
    "dataset:org/rows\0",
    "dataset:" + "x" * 10_000,
]


@pytest.mark.parametrize("spec", TEXTS)
def test_a_text_goes_through_a_link_unchanged(spec: TextSpec) -> None:
    assert read_text(write_text(spec)) == spec


@pytest.mark.parametrize("value", HOSTILE)
def test_a_text_that_a_link_should_not_name_is_passed_over(value: str) -> None:
    assert read_text(value) is None


def test_a_link_never_carries_pasted_text_or_a_file_and_says_so() -> None:
    state = {s.CALIBRATION: TextSpec(kind="paste", value="secret"), s.EVALUATION: TextSpec(kind="file", value="/x")}
    said = left_out(state)
    assert len(said) == 2
    assert "calibration text was pasted" in said[0]
    assert "evaluation text is a file" in said[1]
    assert set(LINKED_KINDS) == {"builtin", "dataset"}


def link_of(page: App) -> dict[str, str]:
    """The link that the page offers, as parameters."""
    (address,) = [code.value for code in page.at.code if code.value.startswith("http")]
    return dict(parse_qsl(urlsplit(address).query))


def test_every_view_is_restored_by_its_own_link(app: Start, tools: Service) -> None:
    run = tools.runs.get("example")
    assert run is not None
    tools.runs.put("kept", run)
    page = app(model="demo", rev="abc", dtype="bfloat16", device="spread", run="kept", start="4", n="7")
    page.state[s.EVALUATION] = TEXTS[2]
    page.at.selectbox(key=s.CRITERION).set_value("kl")
    scale, view = (next(g for g in page.at.get("button_group") if g.key == key) for key in (s.SCALE, s.VIEW))
    scale.set_value("value")
    view.set_value("Best per n")
    parameters = link_of(page.run())
    assert "job" not in parameters

    other = app(**parameters)
    assert other.state[s.REF] == ModelRef(id="demo", revision="abc", dtype="bfloat16", device="spread")
    assert other.state[s.CHOSEN] == Block(start=4, n=7)
    assert other.state[s.RUN] == "kept"
    assert other.state[s.CALIBRATION] == text_of(run.text), "the run's own"
    assert other.state[s.EVALUATION] == TEXTS[2]
    for key in (s.CRITERION, s.SCALE, s.VIEW):
        assert other.state[key] == page.state[key], key
    assert link_of(other) == parameters
    assert tools.jobs.jobs() == ()


def test_a_criterion_goes_through_a_link_by_its_name(app: Start) -> None:
    page = app()
    page.at.selectbox(key=s.CRITERION).set_value("block_influence")
    parameters = link_of(page.run())
    assert parameters["criterion"] == "block_influence"
    assert app(**parameters).state[s.CRITERION] == "block_influence"


def test_the_lines_of_an_opened_run_are_of_its_own_texts_and_the_criterion_on_screen(
    app: Start, tools: Service
) -> None:
    page = app(run="example-passages", criterion="block_influence")
    lines = [code.value for code in page.at.code]
    assert any("shortviz measure demo --builtin passages --limit 64 --out RUN" in line for line in lines)
    assert any("value='passages', limit=64" in line and "'block_influence'" in line for line in lines)
    page = app(run="example-passages", criterion="nll_increase")
    lines = [code.value for code in page.at.code]
    windows = tools.runs.get("example-passages").losses.text.windows
    order = " --order first" if windows.order == "first" else ""  # as runs of before are
    text = f"--builtin python-reference --limit 64 --window 256 --windows {windows.windows}{order} --out RUN"
    assert any(text in line for line in lines)


@pytest.mark.parametrize("spec", [*TEXTS, TextSpec(kind="file", value="a b.txt", bos="always")])
def test_a_record_tells_the_text_that_it_was_measured_on(spec: TextSpec) -> None:
    info = TextInfo(
        source="x", rows=3, tokens=9, fingerprint="f", max_length=spec.max_length, options=text_options(spec)
    )
    assert text_of(info) == spec


@pytest.mark.parametrize("options", ["--builtin", "'", "--limit x", "--builtin passages --limit -5", "--no 1"])
def test_a_record_from_elsewhere_that_tells_nonsense_tells_no_text(options: str) -> None:
    assert text_of(TextInfo(source="x", rows=3, tokens=9, fingerprint="f", max_length=9, options=options)) is None


@pytest.mark.parametrize(
    ("view", "colour", "scale", "command"),
    [
        ("Map", "angular_last", "rank", "measure"),
        ("Table", "nll_increase", "rank", "map"),
        ("Curve", "angular_last", "rank", "curve"),
        ("Agreement", "angular_last", "rank", "measure"),
        ("Map", "angular_last", "difference", "measure"),
    ],
)
def test_the_lines_offered_are_those_of_the_view(view: str, colour: str, scale: str, command: str) -> None:
    state = {s.VIEW: view, s.CRITERION: colour, s.SCALE: scale}
    line, python = share.code_of(ModelRef(id="demo"), state)
    assert line.split()[:3] == ["shortviz", command, "demo"]
    assert ("agreement" in python) == (view == "Agreement" or scale == "difference")
    compile(python, "offered", "exec")


def test_a_link_of_before_still_opens_the_measured_loss_that_it_names(app: Start) -> None:
    for parameters, colour in (({"metric": "kl"}, "kl"), ({}, "nll_increase")):
        page = app(show="measured", **parameters)
        assert page.state[s.CRITERION] == colour
        assert page.errors == []
