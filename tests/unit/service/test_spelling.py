"""Every request comes back from its command and from its link."""

import shlex

import pytest

from shortviz.cli.main import parse
from shortviz.errors import ShortvizError, TextError
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.records.text import TaskSpec, TextSpec, WindowSpec
from shortviz.service.requests import (
    FIT_TEXT,
    REQUESTS,
    BlocksRequest,
    CurveRequest,
    EstimateRequest,
    EvaluateRequest,
    ExportRequest,
    HealRequest,
    MapRequest,
    MeasureRequest,
    PushRequest,
    RepairRequest,
    SearchRequest,
    ShrinkRequest,
    TextsRequest,
)
from shortviz.service.spelling import from_url, options_of, to_command, to_python, to_url

DEMO = ModelRef(id="demo")
HUB = ModelRef(id="org/model", revision="abc", dtype="bfloat16", device="cuda:1")
ROWS = TextSpec(kind="dataset", value="org/rows", subset="en", split="validation", key="body", limit=7, bos="always")
PASSAGES = TextSpec(kind="builtin", value="passages/prose", max_length=64, limit=9)
TASK = TaskSpec(kind="dataset", value="org/quiz", choices=("a", "b"), first_label=1, prompt="Q: {question}", limit=5)
CUT = Removal(block=Block(start=12, n=4))
SCATTERED = Removal(layers=(3, 7, 8))
SMALL = WindowSpec(window=128, windows=2)
ASKED = [
    MeasureRequest(model=DEMO),
    MeasureRequest(model=HUB, text=ROWS, criteria=("angular_last", "block_influence"), batch_size=3, stream=True),
    MeasureRequest(model=DEMO, text=TextSpec(kind="builtin", value="python-reference"), stream=False),
    MeasureRequest(model=DEMO, tokens_per_row=9),
    TextsRequest(model=DEMO, texts=(PASSAGES, TextSpec(kind="builtin", value="passages/code", max_length=64, limit=9))),
    MapRequest(model=HUB, text=PASSAGES, windows=SMALL),
    SearchRequest(model=DEMO, windows=SMALL, max_n=5),
    BlocksRequest(model=DEMO, blocks=(Block(start=12, n=4), Block(start=20, n=2)), windows=SMALL),
    EvaluateRequest(model=DEMO),
    EvaluateRequest(model=HUB, removal=SCATTERED, text=ROWS, windows=SMALL, task=TASK, write="The capital is"),
    EvaluateRequest(model=DEMO, removal=CUT, adapter="folder of adapter", stream=False),
    CurveRequest(model=DEMO, greedy=3, task=TASK, strategies=("simple", "greedy"), sizes=(1, 4, 5)),
    RepairRequest(model=DEMO, removal=CUT, text=ROWS, evaluation=PASSAGES, windows=SMALL, method="scale", batch_size=2),
    RepairRequest(model=DEMO, removal=SCATTERED, text=FIT_TEXT, fit_tokens=4096, task=TASK),
    ShrinkRequest(model=HUB, to_layers=24, text=ROWS, evaluation=ROWS, windows=SMALL),
    ShrinkRequest(model=DEMO, to_layers=24, text=TextSpec(kind="builtin", value="passages", bos="never")),
    ShrinkRequest(model=DEMO, to_layers=24, text=PASSAGES, choose_on_text=True, write="The capital is"),
    HealRequest(model=DEMO, removal=CUT),
    HealRequest(
        model=HUB, removal=CUT, text=ROWS, evaluation=PASSAGES, repair="seam_refit", preset="quick",
        changes=(("seed", 3), ("batch_size", 2), ("gradient_checkpointing", True), ("mix", 0.25), ("method", "lora")),
    ),
    ExportRequest(model=DEMO, removal=CUT, folder="short cli"),
    ExportRequest(model=HUB, folder="out", run="run", methods=("seam_refit", "lora"), adapter_only=True, archive=True),
    PushRequest(folder="short", repo_id="me/short"),
    PushRequest(folder="short", repo_id="me/short", private=False),
    EstimateRequest(model=HUB, rows=8, max_length=32),
]  # fmt: skip


def test_every_kind_of_request_is_among_those_that_are_tried() -> None:
    assert {type(request) for request in ASKED} == set(REQUESTS)


@pytest.mark.parametrize("request_", ASKED, ids=lambda one: one.kind)
def test_a_request_comes_back_from_its_command(request_) -> None:
    assert parse(shlex.split(to_command(request_))[1:]) == request_


@pytest.mark.parametrize("request_", ASKED, ids=lambda one: one.kind)
def test_a_request_comes_back_from_its_link(request_) -> None:
    assert from_url(to_url(request_)) == request_


@pytest.mark.parametrize("request_", ASKED, ids=lambda one: one.kind)
def test_a_request_comes_back_from_its_python(request_) -> None:
    asked = []
    program = to_python(request_).replace("import ", "import ", 1).replace(", execute", "").replace("execute, ", "")
    exec(program, {"execute": asked.append, "print": lambda _: None})
    assert asked == [request_]


@pytest.mark.parametrize("request_", ASKED, ids=lambda one: one.kind)
def test_every_option_says_what_it_is(request_) -> None:
    assert [option.name for option in options_of(type(request_)) if not option.help] == []


def test_files_and_pasted_text_come_back_from_a_command_and_never_from_a_link() -> None:
    for spec in (
        TextSpec(kind="file", value="/data/c4 sample.jsonl", key="body"),
        TextSpec(kind="paste", value="some\ntext"),
    ):
        request = MeasureRequest(model=DEMO, text=spec)
        assert parse(shlex.split(to_command(request))[1:]) == request
        with pytest.raises(TextError, match="neither files nor pasted text"):
            to_url(request)
    with pytest.raises(TextError, match="neither files nor pasted text"):
        from_url("/?do=measure&model=demo&text=/etc/passwd")
    shared = to_command(MeasureRequest(model=DEMO, text=TextSpec(kind="file", value="/data/c4.jsonl")), share=True)
    assert shared == "shortviz measure demo --text c4.jsonl"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("/?do=nothing", "no kind of work"),
        ("/?do=measure&model=demo&batch_size=many", "batch_size is 'many'"),
        ("/?do=evaluate&model=demo&start=3", "--n is missing"),
        ("/?do=measure", "--model is missing"),
        ("/?do=shrink&model=demo", "--to-layers is missing"),
        ("/?do=measure&model=demo&criteria=angular_last,/tmp/mine.py", "neither files"),
        ("/?do=evaluate&model=demo&tasks=/etc/rows.csv", "neither files"),
        ("/?do=texts&model=demo&text=/etc/passwd&builtin=passages", "neither files"),
    ],
)
def test_a_link_that_cannot_be_is_refused_in_a_sentence(url: str, words: str) -> None:
    with pytest.raises(ShortvizError, match=words):
        from_url(url)
