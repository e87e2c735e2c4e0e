"""Every request comes back from its command and from its link."""

import shlex
from dataclasses import replace
from typing import Any

import pytest

from shortviz.cli.main import parse
from shortviz.errors import FieldError, PlanError, ShortvizError, TextError
from shortviz.records.heal import OwnText
from shortviz.records.measured import Gate
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.records.text import TaskSpec, TextSpec, WindowSpec
from shortviz.service.requests import (
    FIT_TEXT,
    REQUESTS,
    TRAINING_TEXT,
    BlocksRequest,
    CurveRequest,
    EstimateRequest,
    EvaluateRequest,
    EvidenceRequest,
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
CHATS = TextSpec(kind="dataset", value="org/chats", key="messages", special_tokens="literal", chat_template="off")
CUT = Removal(block=Block(start=12, n=4))
SCATTERED = Removal(layers=(3, 7, 8))
SMALL = WindowSpec(window=128, windows=2)
ASKED = [
    MeasureRequest(model=DEMO),
    MeasureRequest(model=HUB, text=ROWS, criteria=("angular_last", "block_influence"), batch_size=3, stream=True),
    MeasureRequest(model=DEMO, text=TextSpec(kind="builtin", value="python-reference"), stream=False),
    MeasureRequest(model=DEMO, tokens_per_row=9),
    MeasureRequest(model=DEMO, text=CHATS),
    TextsRequest(model=DEMO, texts=(PASSAGES, TextSpec(kind="builtin", value="passages/code", max_length=64, limit=9))),
    MapRequest(model=HUB, text=PASSAGES, windows=SMALL),
    SearchRequest(model=DEMO, windows=SMALL, max_n=5),
    BlocksRequest(model=DEMO, blocks=(Block(start=12, n=4), Block(start=20, n=2)), windows=SMALL),
    EvaluateRequest(model=DEMO),
    EvaluateRequest(model=HUB, removal=SCATTERED, text=ROWS, windows=SMALL, task=TASK, write="The capital is"),
    EvaluateRequest(model=DEMO, removal=CUT, adapter="folder of adapter", stream=False),
    EvaluateRequest(model=DEMO, removal=CUT, task=TASK, gate=Gate(max_nll_increase=0.25, min_accuracy=0.4)),
    CurveRequest(model=DEMO, greedy=3, task=TASK, strategies=("simple", "greedy"), sizes=(1, 4, 5)),
    RepairRequest(model=DEMO, removal=CUT, text=ROWS, evaluation=PASSAGES, windows=SMALL, method="scale", batch_size=2),
    RepairRequest(model=DEMO, removal=SCATTERED, text=FIT_TEXT, fit_tokens=4096, task=TASK),
    ShrinkRequest(model=HUB, to_layers=24, text=ROWS, evaluation=ROWS, windows=SMALL),
    ShrinkRequest(model=HUB, to_layers=24, text=CHATS, evaluation=CHATS),
    ShrinkRequest(model=DEMO, to_layers=24, text=TextSpec(kind="builtin", value="passages", bos="never")),
    ShrinkRequest(model=DEMO, to_layers=24, text=PASSAGES, choose_on_text=True, write="The capital is"),
    HealRequest(model=DEMO, removal=CUT),
    HealRequest(
        model=HUB, removal=CUT, text=ROWS, evaluation=PASSAGES, repair="seam_refit", fit_tokens=65_536, preset="quick",
        changes=(("seed", 3), ("batch_size", 2), ("gradient_checkpointing", True), ("mix", 0.25), ("method", "lora")),
    ),
    EvidenceRequest(model=DEMO, removal=CUT),
    EvidenceRequest(
        model=HUB, removal=SCATTERED, text=ROWS, evaluation=PASSAGES, windows=SMALL, task=TASK, seed=3, repair="scale",
        other_texts=("passages/news", "passages/german"), adapter="folder", write="The capital is", probe_items=7,
        lm_eval=("arc_easy", "piqa"), lm_eval_limit=9,
    ),
    HealRequest(model=DEMO, removal=CUT, text=ROWS, own=OwnText(self_share=0.5, self_tokens=9, self_top_p=0.25)),
    ExportRequest(model=DEMO, removal=CUT, folder="short cli"),
    ExportRequest(model=DEMO, removal=CUT, folder="x", text=ROWS, windows=SMALL, gate=Gate(max_nll_increase=0.25)),
    ExportRequest(model=HUB, folder="out", run="run", methods=("seam_refit", "lora"), adapter_only=True, archive=True),
    PushRequest(folder="short", repo_id="me/short"),
    PushRequest(folder="short", repo_id="me/short", private=False),
    EstimateRequest(model=HUB, rows=8, max_length=32),
    EstimateRequest(model=ModelRef(id="-model"), rows=8),
    EvaluateRequest(model=ModelRef(id="--model", revision="-1"), removal=CUT, write="-- no"),
    PushRequest(folder="-short", repo_id="-me/short", private=False),
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


def test_what_no_command_could_say_is_refused_by_its_record() -> None:
    with pytest.raises(PlanError, match="Nothing says what to remove"):
        Removal(layers=())
    for name in ("a,b", " a", "a "):
        with pytest.raises(TextError, match="comma or a space"):
            TaskSpec(kind="dataset", value="org/quiz", choices=(name, "c"))


def test_files_and_pasted_text_come_back_from_a_command_and_never_from_a_link() -> None:
    for spec in (
        TextSpec(kind="file", value="/data/c4 sample.jsonl", key="body"),
        TextSpec(kind="file", value="/data/chats.jsonl", chat_template="/data/mine.jinja"),
        replace(CHATS, chat_template="mine.jinja"),
        TextSpec(kind="paste", value="some\ntext"),
    ):
        request = MeasureRequest(model=DEMO, text=spec)
        assert parse(shlex.split(to_command(request))[1:]) == request
        with pytest.raises(TextError, match="neither files nor pasted text"):
            to_url(request)
    with pytest.raises(TextError, match="neither files nor pasted text"):
        from_url("/?do=measure&model=demo&text=/etc/passwd")
    with pytest.raises(TextError, match="neither files nor pasted text"):
        from_url("/?do=evidence&model=demo&start=1&n=1&other_texts=passages/code,/etc/passwd")
    shared = to_command(MeasureRequest(model=DEMO, text=TextSpec(kind="file", value="/data/c4.jsonl")), share=True)
    assert shared == "shortviz measure demo --text c4.jsonl"
    shared = to_command(MeasureRequest(model=DEMO, text=replace(CHATS, chat_template="/data/my.jinja")), share=True)
    assert shared.endswith("--chat-template my.jinja")


def test_the_text_self_is_a_share_of_one_and_keeps_how_text_is_read() -> None:
    cut = ["heal", "demo", "--start", "12", "--n", "4"]
    every, half = (parse([*cut, "--text", "self", *more, "--bos", "never"]) for more in ([], ["--self-share", "0.5"]))
    assert every == HealRequest(
        model=DEMO, removal=CUT, text=replace(TRAINING_TEXT, bos="never"), own=OwnText(self_share=1.0),
        evaluation=replace(every.evaluation, bos="never"),
    )  # fmt: skip
    assert half == replace(every, own=OwnText(self_share=0.5))
    assert to_command(half) == "shortviz heal demo --start 12 --n 4 --bos never --self-share 0.5"
    file = parse([*cut, "--text", "./self"])
    assert (file.text.kind, file.own) == ("file", OwnText())
    shared = to_command(replace(every, own=OwnText(self_share=1.0, prompts="/home/me/mine.txt")), share=True)
    assert shared.endswith("--self-share 1.0 --prompts mine.txt")
    with pytest.raises(TextError, match="neither files nor pasted text"):
        to_url(replace(every, own=OwnText(self_share=1.0, prompts="/home/me/mine.txt")))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--prompts", "mine.txt"), "prompts is of text that the model writes itself; give self_share too"),
        (("--self-seed", "3"), "self_seed is of text that the model writes itself"),
        (("--text", "self", "--key", "body"), "key is for text that is read, and the model writes its own"),
        (("--text", "self", "--chat-template", "off"), "chat_template is for text that is read"),
        (("--text", "self", "--self-share", "1.5"), "self_share is 1.5; it must be above 0 and at most 1"),
    ],
)
def test_settings_of_a_text_of_the_model_s_own_that_do_nothing_are_refused(more, words) -> None:
    with pytest.raises(FieldError, match=words):
        parse(["heal", "demo", "--start", "12", "--n", "4", *more])


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
        ("/?do=measure&model=demo&dataset=org/chats&chat_template=/etc/passwd", "neither files"),
        ("/?do=heal&model=demo&start=1&n=1&eval_dataset=a/b&eval_chat_template=x.jinja", "neither files"),
        ("/?do=measure&model=demo&special_tokens=some", "special_tokens is 'some'; it must be auto, literal or parsed"),
        ("/?do=heal&model=demo&start=1&n=1&eval_bos=odd", "eval_bos is 'odd'; it must be auto, always or never"),
        ("/?do=measure&model=demo&chat_template=off", "is for chats in a file or a data set; give --text or --dataset"),
        ("/?do=heal&model=demo&start=1&n=1&self_share=1&prompts=/etc/passwd", "neither files"),
        ("/?do=texts&model=demo&text=/etc/passwd&builtin=passages", "neither files"),
    ],
)
def test_a_link_that_cannot_be_is_refused_in_a_sentence(url: str, words: str) -> None:
    with pytest.raises(ShortvizError, match=words):
        from_url(url)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"out_dtype": "int8"}, "is 'int8'; give one of stored, float32, bfloat16, float16"),
        ({"out_dtype": "float16", "stream": True}, "is float16, and a stream of files is written as it is stored"),
        ({"out_dtype": "float16", "adapter_only": True}, "is float16, and an adapter is written as it is stored"),
        ({"out_dtype": "float16", "folder": "cut.gguf"}, "is float16, and a GGUF file is written as it is stored"),
    ],
)
def test_a_precision_of_the_files_that_nothing_can_write_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(FieldError, match=why):
        ExportRequest(**{"model": ModelRef(id="demo"), "folder": "out"} | fields)
