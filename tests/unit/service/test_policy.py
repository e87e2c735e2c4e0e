"""A hosted installation: whatever a stranger asks for, nothing crosses a limit; on one's own machine all is allowed."""

import gzip
import math
import re
from dataclasses import dataclass, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from shortviz.errors import PolicyError
from shortviz.records.heal import HealSettings, OwnText
from shortviz.records.model import ModelEstimate, ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.records.text import TaskSpec, TextSpec, WindowSpec
from shortviz.service import policy, service
from shortviz.service.queue import JobState
from shortviz.service.requests import EvidenceRequest, HealRequest, MeasureRequest
from shortviz.settings import Settings

COMMIT = "a" * 40
DEMO = ModelRef(id="demo")


@pytest.fixture
def rules(tmp_path: Path) -> Settings:
    (tmp_path / "uploads").mkdir()
    return Settings(
        hosted=True,
        runs_dir=tmp_path,
        allowed_models=("demo", f"org/pinned@{COMMIT}"),
        allowed_datasets=("org/rows",),
        max_upload_mb=1,
    )


def paste(**fields: Any) -> TextSpec:
    return TextSpec(**{"kind": "paste", "value": "Some words."} | fields)


HOSTILE_MODELS = {
    "another hub id": ModelRef(id="meta-llama/Llama-3.1-405B"),
    "an absolute path": ModelRef(id="/etc/passwd"),
    "a relative path": ModelRef(id="../../etc"),
    "a home folder": ModelRef(id="~/.ssh"),
    "a GGUF file": ModelRef(id="/models/any.gguf"),
    "a UNC path": ModelRef(id="\\\\attacker\\share"),
    "a URL": ModelRef(id="http://169.254.169.254/latest/meta-data"),
    "a null byte": ModelRef(id="demo\0"),
    "another case": ModelRef(id="DEMO"),
    "a trailing blank": ModelRef(id="demo "),
    "an empty id": ModelRef(id=""),
    "a look-alike letter": ModelRef(id="dem\N{CYRILLIC SMALL LETTER O}"),
    "HTML": ModelRef(id="<img src=x onerror=alert(1)>"),
    "a markdown image": ModelRef(id="![x](http://attacker/p.png)"),
    "an endless id": ModelRef(id="a" * 100_000),
    "a pull request of an allowed model": ModelRef(id="demo", revision="refs/pr/1"),
    "a stranger's commit of an allowed model": ModelRef(id="demo", revision="b" * 40),
    "another commit than the pinned one": ModelRef(id="org/pinned", revision="main"),
    "a dtype twice as large": ModelRef(id="demo", dtype="float64"),
    "a dtype that is code": ModelRef(id="demo", dtype="__import__('os')"),
    "a device of another kind": ModelRef(id="demo", device="meta"),
    "a device that is text": ModelRef(id="demo", device="cpu;rm -rf /"),
}
HOSTILE_TEXTS = {
    "a file of the server": TextSpec(kind="file", value="/etc/passwd"),
    "a chat template of the server": TextSpec(kind="dataset", value="org/rows", limit=1, chat_template="/etc/passwd"),
    "a relative file": TextSpec(kind="file", value="app.py"),
    "a device file": TextSpec(kind="file", value="/dev/zero"),
    "a file with a null byte": TextSpec(kind="file", value="up\0load.txt"),
    "another data set": TextSpec(kind="dataset", value="allenai/c4", limit=1),
    "a data set at a URL": TextSpec(kind="dataset", value="hf://datasets/org/rows", limit=1),
    "a data set without a limit": TextSpec(kind="dataset", value="org/rows"),
    "a huge paste": paste(value="x" * 10_000_000),
    "a million rows": paste(limit=1_000_000),
    "rows of a million tokens": paste(max_length=1_000_000),
    "rows times tokens": TextSpec(kind="builtin", value="python-reference", limit=256, max_length=8192),
    "one row as long as the whole budget": paste(max_length=65_536),
    "one row a token too long": TextSpec(kind="builtin", value="passages", limit=1, max_length=2_049),
    "all of the largest built-in text": TextSpec(kind="builtin", value="python-reference"),
    "an endless column name": paste(key="k" * 100_000),
    "an endless split": TextSpec(kind="dataset", value="org/rows", limit=1, split="s" * 100_000),
    "tasks in a file of the server": TaskSpec(kind="file", value="/etc/passwd", limit=1),
    "tasks of another data set": TaskSpec(kind="dataset", value="org/other", limit=1),
    "tasks without a limit": TaskSpec(kind="dataset", value="org/rows"),
    "tasks with an endless column": TaskSpec(kind="dataset", value="org/rows", limit=1, question="x" * 10_000),
    "tasks with an endless delimiter": TaskSpec(kind="dataset", value="org/rows", limit=1, delimiter=" " * 10_000),
    "tasks with countless choices": TaskSpec(
        kind="dataset", value="org/rows", limit=1, choices=tuple(map(str, range(99)))
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A kind of job that `policy` has never heard of; the names of its fields are known."""

    ref: ModelRef = DEMO
    text: TextSpec | None = None
    folder: str | None = None
    prompt: str | tuple[str, ...] = ""
    steps: int = 1
    learning_rate: float = 1e-4
    max_new_tokens: int = 1
    inner: Any = None


HOSTILE_JOBS = {
    "a folder of the server": Asked(folder="/tmp/exported"),
    "a GGUF file of the server": Asked(folder="/tmp/exported.gguf"),
    "a GGUF file beside the downloads": Asked(folder="{downloads}/../x.gguf"),
    "a folder beside the downloads": Asked(folder="{downloads}/../../elsewhere"),
    "the downloads themselves": Asked(folder="{downloads}"),
    "a folder with a null byte": Asked(folder="{downloads}/a\0b"),
    "an endless prompt": Asked(prompt="word " * 100_000),
    "an endless prompt among several": Asked(prompt=("short", "x" * 50_000)),
    "too many new tokens": Asked(max_new_tokens=100_000),
    "too many steps": Asked(steps=10**9),
    "a window as long as the whole budget": Asked(inner=WindowSpec(window=65_536, windows=1)),
    "a number that is not one": Asked(learning_rate=math.nan),
    "an infinite number": Asked(learning_rate=math.inf),
    "a huge negative number": Asked(steps=-(10**12)),
    "a model hidden in a list": Asked(inner=[{"deep": (ModelRef(id="/etc"),)}]),
    "a file hidden in a record": Asked(inner=Asked(text=TextSpec(kind="file", value="/etc/passwd"))),
    "a path as a path": Asked(inner=Path("/etc/passwd")),
    "endless nesting": Asked(inner=[[[[[[[[[[1]]]]]]]]]]),
}


@pytest.mark.parametrize("asked", [*HOSTILE_MODELS.values(), *HOSTILE_TEXTS.values()], ids=lambda asked: "")
def test_no_hostile_model_or_text_passes_wherever_it_stands_in_a_job(rules: Settings, asked: Any) -> None:
    with pytest.raises(PolicyError) as caught:
        policy.check(rules, {"any": [asked]})
    said = str(caught.value)
    assert len(said) < 400
    assert said.isprintable()
    assert not policy.allowed(rules, asked)


@pytest.mark.parametrize("name", HOSTILE_JOBS)
def test_no_job_of_an_unknown_kind_crosses_a_limit(rules: Settings, name: str) -> None:
    from dataclasses import replace

    asked = HOSTILE_JOBS[name]
    if asked.folder is not None:
        asked = replace(asked, folder=asked.folder.replace("{downloads}", str(rules.downloads_dir)))
    with pytest.raises(PolicyError):
        policy.check_start(rules, asked, [], 10**12)


def judged_fields(record: type) -> dict[str, set[type]]:
    """Return the fields of a record and of every record inside it, by name, with the types that they take."""
    found: dict[str, set[type]] = {}
    hints = get_type_hints(record)
    for name in [field.name for field in fields(record)]:
        hint = HealSettings if name == "changes" else hints[name]
        for kind in leaf_types(hint):
            inner = judged_fields(kind) if is_dataclass(kind) else {name: {kind}}
            for field, kinds in inner.items():
                found.setdefault(field, set()).update(kinds)
    return found


def leaf_types(hint: Any) -> set[type]:
    if get_origin(hint) is Literal:
        return {type(choice) for choice in get_args(hint)}
    inside = [kind for kind in get_args(hint) if kind not in (type(None), ...)]
    return set().union(*map(leaf_types, inside)) if inside else {hint}


FIELDS = judged_fields(service.Asked)


def test_the_walk_over_what_is_judged_finds_the_fields_of_all_records() -> None:
    assert len(FIELDS) > 40
    for name, kinds in {"run_key": {str}, "plans": {int}, "temperature": {float}, "mix": {float}, "n": {int}}.items():
        assert FIELDS[name] == kinds
    for record in (ModelRef, TextSpec, WindowSpec, TaskSpec, HealSettings, Block):
        assert {field.name for field in fields(record)} <= FIELDS.keys()


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_field_of_every_record_has_a_limit_that_holds(rules: Settings, name: str) -> None:
    if name in policy.FOLDER_FIELDS:
        assert not policy.allowed(rules, {name: "/etc"})
        return
    most = policy.limits(rules)[name]
    for kind in FIELDS[name] - {bool}:
        largest, more = ("x" * int(most), "x" * int(most + 1)) if kind is str else (kind(most), kind(most + 1))
        assert policy.allowed(rules, {name: largest})
        with pytest.raises(PolicyError, match=re.compile(name.replace("_", " "), re.IGNORECASE)) as caught:
            policy.check(rules, {name: more})
        assert f"at most {most:,.0f}" in str(caught.value)


@pytest.mark.parametrize("value", [0, 1, -0.5, True, "", "x", b"x", object(), int, (1,), [["x"]], {"surprise": 1}])
def test_a_field_without_a_limit_is_refused_by_name_whatever_it_holds(rules: Settings, value: Any) -> None:
    asked = make_dataclass("Later", ["ref", "surprise_field"])(DEMO, value)
    with pytest.raises(PolicyError, match="no limit for surprise"):
        policy.check_start(rules, asked, [], 10**12)


def test_there_are_at_least_forty_hostile_inputs() -> None:
    assert len(HOSTILE_MODELS) + len(HOSTILE_TEXTS) + len(HOSTILE_JOBS) >= 40


def test_what_the_demo_is_for_passes(rules: Settings) -> None:
    upload = rules.uploads_dir / "a.txt"
    upload.write_text("Some words.")
    fine = [
        DEMO,
        ModelRef(id="org/pinned", revision=COMMIT, dtype="bfloat16", device="cpu"),
        TextSpec(kind="builtin", value="python-reference", limit=64, max_length=256),
        TextSpec(kind="builtin", value="passages"),
        TextSpec(kind="file", value=str(upload), limit=10),
        TextSpec(kind="dataset", value="org/rows", limit=10),
        paste(),
        paste(max_length=2_048),
        Asked(folder=str(rules.downloads_dir / "abc" / "demo-without-1"), prompt="The capital of France is"),
        Block(start=3, n=4),
    ]
    assert [one for one in fine if not policy.allowed(rules, one)] == []
    assert not policy.allowed(rules, [*fine, ModelRef(id="org/other")]), "the last of many is looked at too"
    policy.check_start(rules, fine, [], 10**12)


def test_an_uploaded_file_is_judged_by_where_it_leads_and_its_size(rules: Settings, tmp_path: Path) -> None:
    link = rules.uploads_dir / "link.txt"
    link.symlink_to("/etc/passwd")
    large = rules.uploads_dir / "large.txt"
    large.write_bytes(b"x" * 1_000_001)
    for path in (link, large):
        assert not policy.allowed(rules, TextSpec(kind="file", value=str(path), limit=1))
    with pytest.raises(PolicyError, match="1 MB"):
        policy.check_upload_bytes(rules, 1_000_001)
    with pytest.raises(PolicyError, match="no longer on the server; give it again"):
        policy.check(rules, TextSpec(kind="file", value=str(rules.uploads_dir / "gone.txt"), limit=1))


def test_an_uploaded_file_is_judged_by_what_it_unpacks_to(rules: Settings) -> None:
    def upload(name: str, size: int) -> TextSpec:
        (rules.uploads_dir / name).write_bytes(gzip.compress(b"x" * size))
        return TextSpec(kind="file", value=str(rules.uploads_dir / name), limit=1)

    policy.check(rules, upload("small.txt.gz", 1_000_000))
    for spec in (upload("bomb.txt.gz", 1_000_001), upload("bomb.jsonl.gz", 100_000_000)):
        with pytest.raises(PolicyError, match="The uploaded file unpacks to more than 1 MB; shorten it"):
            policy.check(rules, spec)
    task = TaskSpec(kind="file", value=str(rules.uploads_dir / "bomb.jsonl.gz"), limit=1)
    with pytest.raises(PolicyError, match="unpacks to more than 1 MB"):
        policy.check(rules, task)


def job(**fields: Any) -> JobState:
    return JobState(**{"id": "x", "kind": "measure", "title": "t", "state": "running"} | fields)


def test_a_visitor_has_few_jobs_at_a_time(rules: Settings) -> None:
    mine = [job()] * rules.max_jobs
    policy.check_start(rules, DEMO, [*mine[1:], job(stopping=True)], 10**12)
    with pytest.raises(PolicyError, match="3 jobs"):
        policy.check_start(rules, DEMO, mine, 10**12)


def test_no_job_is_taken_while_memory_is_short(rules: Settings) -> None:
    with pytest.raises(PolicyError, match="short of memory"):
        policy.check_start(rules, DEMO, [], rules.min_free_mb * 1_000_000 - 1)


def test_a_model_is_judged_by_its_headers_before_it_is_loaded(rules: Settings) -> None:
    fields = dict.fromkeys(("architecture", "dtype", "device", "reason"), "x")
    numbers = dict.fromkeys(("num_layers", "download_bytes", "memory_bytes", "available_bytes"), 1)
    for parameters, fits in ((rules.max_parameters, True), (rules.max_parameters + 1, False)):
        found = ModelEstimate(id="demo", revision=None, parameters=parameters, **fields, **numbers)
        if fits:
            policy.check_estimate(rules, found)
            policy.check_export(rules, "demo", parameters)
            continue
        with pytest.raises(PolicyError, match="million parameters"):
            policy.check_estimate(rules, found)
        with pytest.raises(PolicyError, match="million parameters"):
            policy.check_export(rules, "demo", parameters)


@pytest.mark.parametrize("asked", [*HOSTILE_MODELS.values(), *HOSTILE_TEXTS.values(), *HOSTILE_JOBS.values()])
def test_on_ones_own_machine_nothing_is_refused(asked: Any, tmp_path: Path) -> None:
    own = Settings(hosted=False, runs_dir=tmp_path)
    assert policy.allowed(own, asked)
    policy.check_start(own, asked, [job()] * 50, 0)


def test_a_space_is_hosted_unless_it_is_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHORTVIZ_HOSTED", raising=False)
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert not Settings().is_hosted
    monkeypatch.setenv("SPACE_ID", "me/shortviz")
    assert Settings().is_hosted
    monkeypatch.setenv("SHORTVIZ_HOSTED", "0")
    assert not Settings().is_hosted
    monkeypatch.setenv("SHORTVIZ_ALLOWED_MODELS", "demo, org/tiny")
    assert Settings().allowed_models == ("demo", "org/tiny")


def test_nothing_is_streamed_where_strangers_ask() -> None:
    rules = Settings(hosted=True)
    with pytest.raises(PolicyError, match="This hosted demo does not stream"):
        policy.check(rules, MeasureRequest(model=ModelRef(id="demo"), stream=True))
    policy.check(rules, MeasureRequest(model=ModelRef(id="demo"), stream=False))


def test_evidence_reads_built_in_texts_alone_and_runs_no_tasks_of_others() -> None:
    rules = Settings(hosted=True)
    asked = {
        "model": DEMO, "removal": Removal(block=Block(start=12, n=4)),
        "text": TextSpec(kind="builtin", value="passages", limit=4, max_length=64),
    }  # fmt: skip
    policy.check(rules, EvidenceRequest(**asked))
    for hostile in (
        {"other_texts": ("passages/code", "/etc/passwd")}, {"lm_eval": ("arc_easy",)}, {"adapter": "/etc"},
        {"probe_items": 101},
    ):  # fmt: skip
        with pytest.raises(PolicyError):
            policy.check(rules, EvidenceRequest(**asked, **hostile))


def test_what_a_preset_says_is_judged_as_what_is_changed_in_it() -> None:
    rules, cut = Settings(hosted=True), Removal(block=Block(start=12, n=4))
    text = TextSpec(kind="builtin", value="passages", limit=4, max_length=64)
    asked = HealRequest(
        model=DEMO, removal=cut, text=text, preset="paper", changes=(("batch_size", 1), ("length", 512))
    )
    with pytest.raises(PolicyError, match="Steps is 5,000, and this hosted demo takes at most 200"):
        policy.check(rules, asked)
    policy.check(rules, HealRequest(model=DEMO, removal=cut, text=text, preset="quick"))


def test_a_pasted_text_is_judged_by_the_rows_that_it_is_cut_into() -> None:
    rules = Settings(hosted=True)
    long = TextSpec(kind="paste", value="x" * 30_000, max_length=64)
    with pytest.raises(PolicyError, match="reads at most 256 rows of a text"):
        policy.check(rules, long)
    policy.check(rules, replace(long, limit=64), replace(long, long_rows="truncate"), replace(long, max_length=256))


def test_a_model_writes_no_more_for_its_training_than_for_a_visitor() -> None:
    rules, cut = Settings(hosted=True), Removal(block=Block(start=12, n=4))
    text = TextSpec(kind="builtin", value="passages", limit=4, max_length=64)
    asked = HealRequest(model=DEMO, removal=cut, text=text, preset="quick", own=OwnText(self_share=0.5))
    with pytest.raises(PolicyError, match="Self length is 256, and this hosted demo takes at most 64"):
        policy.check(rules, asked)
    short = replace(asked.own, self_length=64)
    policy.check(rules, replace(asked, own=short))
    with pytest.raises(PolicyError, match="Self tokens is 70,000, and this hosted demo takes at most 65,536"):
        policy.check(rules, replace(asked, own=replace(short, self_tokens=70_000)))
    with pytest.raises(PolicyError, match="reads no files of its server"):
        policy.check(rules, replace(asked, own=replace(short, prompts="/etc/passwd")))
