"""shortviz evidence: every step of a cut's ledger in one table, kept part by part, refused in a sentence."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shortviz.errors import Stopped
from shortviz.progress import Progress, Watch
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, Removal
from shortviz.records.text import WindowSpec
from shortviz.runs.run import load_run
from shortviz.service.execute import execute
from shortviz.service.place import Place
from shortviz.service.requests import EvidenceRequest
from tests.support.command import Outcome

CUT = ("--start", "2", "--n", "2")
SMALL = ("--max-length", "64", "--window", "64", "--windows", "4", "--probe-items", "3")
Run = Callable[..., Outcome]


@pytest.fixture
def questions(tmp_path: Path) -> str:
    rows = [{"question": f"What is {i}?", "choices": [f"it is {i}", "no"], "label": i % 2} for i in range(8)]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_every_step_has_texts_questions_probes_speed_and_size(
    checkpoint: str, shortviz: Run, tmp_path: Path, questions: str
) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "run"
    quick = ("--steps", "2", "--length", "32", "--train-batch", "1", "--eval-every", "1", "--max-length", "64")
    healed = shortviz(
        "heal", checkpoint, *CUT, *quick, "--window", "64", "--windows", "2", "--adapter", str(adapter), "--anyway"
    )
    assert healed[0] == 0, healed
    asked = (
        "--repair", "seam_refit", "--fit-tokens", "2048", "--adapter", str(adapter),
        "--texts", "passages/code,passages/news",
    )  # fmt: skip

    code, printed, err = shortviz(
        "evidence", checkpoint, *CUT, *SMALL, *asked, "--tasks", questions, "--out", str(out)
    )  # fmt: skip

    assert code == 0, err
    header = printed.splitlines()[1]
    for label in ("uncut", "cut", "repaired (seam refit)", "healed (lora)"):
        assert label in header
    for words in ("perplexity, built-in passages/news", "multiple choice, 8 questions", "right to wrong", "decode"):
        assert words in printed
    assert "operations and weight bytes, computed" in printed
    assert "The probe copy cannot tell anything: the uncut model itself gets 0 of 3 right." in printed
    (ledger,) = load_run(out).ledgers
    assert [probe.name for probe in ledger.probes] == ["copy", "addition", "brackets", "recall", "facts"]
    assert [len(probe.items) for probe in ledger.probes if not probe.refused] == [3] * 4
    for step in ledger.steps:
        assert [found.text.source for found in step.evidence.texts] == [
            "built-in passages/code",
            "built-in passages/news",
        ]
        assert len(step.evidence.probes) == 4
        assert step.evidence.disk_bytes > 0
        assert step.task is not None
    assert ledger.steps[1].evidence.texts[0].nll_increase_stderr is not None
    assert len(ledger.paces) == 3

    shown = shortviz("show", str(out))
    assert shown[0] == 0
    assert "probe addition" in shown[1]


def test_the_repaired_step_is_the_one_that_the_adapter_was_trained_on(
    checkpoint: str, shortviz: Run, tmp_path: Path
) -> None:
    adapter, place = tmp_path / "adapter", Place(tmp_path / "run")
    quick = ("--steps", "2", "--length", "32", "--train-batch", "1", "--eval-every", "1", "--max-length", "64")
    trained = shortviz(
        "heal", checkpoint, *CUT, *quick, "--window", "64", "--windows", "2", "--repair", "seam_refit",
        "--adapter", str(adapter), "--anyway", "--builtin", "python-reference",
    )  # fmt: skip
    assert trained[0] == 0, trained
    request = EvidenceRequest(
        model=ModelRef(id=checkpoint), removal=Removal(block=Block(start=2, n=2)), probe_items=3, fit_tokens=2048,
        windows=WindowSpec(window=64, windows=2), other_texts=("passages/code",), repair="seam_refit",
        adapter=str(adapter),
    )  # fmt: skip
    told: list[Progress] = []

    found = execute(request, Watch(told.append), place=place)

    repaired, healed = found.ledger.steps[2:]
    assert (repaired.methods, healed.methods) == (("seam_refit",), ("seam_refit", "lora"))
    assert healed.treatments[0] == repaired.treatments[0], "fitted once: the healing went on from it"
    assert repaired.evaluation.score.nll < found.ledger.steps[1].evaluation.score.nll
    assert not any(step.stage == "repair" for step in told)
    assert found.note == "The repaired model is the one that the adapter was trained on."


def test_what_a_stop_left_out_alone_is_measured_by_the_same_request(checkpoint: str, tmp_path: Path) -> None:
    stop, place = threading.Event(), Place(tmp_path / "run")
    request = EvidenceRequest(
        model=ModelRef(id=checkpoint), removal=Removal(block=Block(start=2, n=2)), probe_items=3,
        windows=WindowSpec(window=64, windows=2), other_texts=("passages/code",),
    )  # fmt: skip

    def at_the_cuts_second_probe(step: Progress) -> None:
        if step.detail == "cut, copy" and step.done == step.total:
            stop.set()

    with pytest.raises(Stopped):
        execute(request, Watch(at_the_cuts_second_probe, stop), place=place)
    assert place.run is not None
    before = place.run.ledgers[0]
    assert [len(step.evidence.probes) for step in before.steps] == [4, 1]

    told: list[str] = []
    done = execute(request, Watch(lambda step: told.append(step.detail)), place=place).ledger

    assert "uncut, copy" not in told
    assert "cut, copy" not in told
    assert "cut, addition" in told
    assert [len(step.evidence.probes) for step in done.steps] == [4, 4]
    assert done.steps[0].evidence == before.steps[0].evidence
    whole = execute(request).ledger
    for one, other in zip(done.steps, whole.steps, strict=True):
        assert one.evidence.probes == other.evidence.probes
        assert one.evidence.texts[0].nll_increase == other.evidence.texts[0].nll_increase


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--texts", "nothing.txt"), "nothing.txt"),
        (("--repair", "magic"), "magic"),
        (("--probe-items", "0"), "--probe-items is 0; it must be at least 1."),
        (("--adapter", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    checkpoint: str, shortviz: Run, tmp_path: Path, more: tuple[str, str], words: str
) -> None:
    code, printed, err = shortviz("evidence", checkpoint, *CUT, *SMALL, *more)

    assert (code, printed) == (2, "")
    assert words in err.splitlines()[-1]
