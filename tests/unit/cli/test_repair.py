"""shortviz repair and shortviz shrink: what they print, write and refuse."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shortviz.cli.session import warn_same_text
from shortviz.errors import ResourceError
from shortviz.records.ledger import accuracy_change
from shortviz.records.text import TextSpec
from shortviz.runs.run import load_run
from shortviz.service.ledger import CutLedger
from tests.support.command import Outcome
from tests.support.paths import ROOT

SMALL = ("--fit-tokens", "2048", "--max-length", "64", "--window", "64", "--windows", "2")
ONE_KIND = (*SMALL, "--builtin", "python-reference")
"""Text that teaches this random model nothing of the passages."""
Run = Callable[..., Outcome]


def test_repair_writes_a_proved_checkpoint_and_its_ledger(checkpoint: str, shortviz: Run, tmp_path: Path) -> None:
    out = tmp_path / "repaired"

    code, printed, _ = shortviz(
        "repair",
        checkpoint,
        "--start",
        "2",
        "--n",
        "2",
        "--method",
        "seam_refit",
        *SMALL,
        "--windows",
        "32",
        "--export",
        str(out),
        "--json",
    )

    found = json.loads(printed)
    assert code == 0
    assert (found["applied"], found["verdict"]) == (True, "")
    assert [step["name"] for step in found["ledger"]["steps"]] == ["uncut", "cut", "repaired"]
    assert found["export"]["removed"] == [2, 3]
    assert found["export"]["max_logit_diff"] == 0.0
    assert json.loads((out / "shortviz.json").read_text())["treatments"][0]["method"] == "seam_refit"
    card = (out / "README.md").read_text()
    assert "Nothing was trained after the cut" not in card
    assert "--start 2 --n 2 --max-length 64 --fit-tokens 2048" in card


def test_a_repair_that_is_not_told_from_the_cut_is_written_only_when_asked_for(
    checkpoint: str, shortviz: Run, tmp_path: Path
) -> None:
    out = tmp_path / "repaired"
    command = ("repair", checkpoint, "--start", "2", "--n", "2", *ONE_KIND, "--export", str(out))

    code, printed, err = shortviz(*command)

    assert code == 2
    assert printed.startswith("On built-in passages, repaired (seam refit) is no better than what it began from: NLL ")
    assert "paired over 2 windows, two errors include zero" in printed.splitlines()[0]
    assert "(errors widened by 1.84 as there are only 2 windows: Student's t)" in printed
    assert "nothing was written; give --anyway to write it all the same" in err.splitlines()[-1]
    assert not out.exists()
    assert shortviz(*command, "--anyway")[0] == 0
    assert (out / "model.safetensors").is_file()


def test_repair_asks_every_step_the_same_questions_and_advise_reads_the_run(
    checkpoint: str, shortviz: Run, tmp_path: Path
) -> None:
    run, file = str(tmp_path / "run"), tmp_path / "questions.jsonl"
    rows = [{"question": f"Word {i} is", "choices": ["blue", "a fish", str(i)], "label": i % 3} for i in range(9)]
    file.write_text("\n".join(json.dumps(row) for row in rows))

    code, printed, err = shortviz(
        "repair", checkpoint, "--start", "2", "--n", "2", *ONE_KIND, "--tasks", str(file), "--out", run
    )

    assert code == 0, err
    assert "accuracy" in printed
    assert "Accuracy over 9 questions of file questions.jsonl" in printed
    saved = load_run(Path(run))
    assert [task.removed for task in saved.tasks] == [(), (2, 3)], "those of the uncut and the cut model"
    (ledger,) = saved.ledgers
    assert [step.name for step in ledger.steps] == ["uncut", "cut", "repaired"]
    assert all(step.task is not None and step.task.questions == 9 for step in ledger.steps)
    cut = ledger.steps[1]
    assert cut.task is not None
    uncut = ledger.steps[0].task
    assert uncut is not None
    right = [[int(c) for c in task.right] for task in (uncut, cut.task)]
    differences = [after - before for before, after in zip(*right, strict=True)]
    change = accuracy_change(ledger, cut)
    assert change is not None
    assert change[0] == pytest.approx(cut.task.accuracy - uncut.accuracy)
    assert change[1] == pytest.approx(statistics.stdev(differences) / 3)

    code, printed, err = shortviz("advise", run, "--layers", "2", "--json")
    assert code == 0, err
    advice = json.loads(printed)
    compared = [advice["plan"], *advice["ties"]]
    assert [(one["removed"], one["source"]) for one in compared] == [([2, 3], "ledger")] * 2
    assert sorted(one["methods"] for one in compared) == [[], ["seam_refit"]], "the repaired cut was compared too"
    code, printed, err = shortviz("repair", "demo", "--remove", "2", "--out", run, *SMALL)
    assert (code, "not of demo" in err) == (2, True)


def test_repair_without_a_folder_only_measures(checkpoint: str, shortviz: Run) -> None:
    code, printed, _ = shortviz("repair", checkpoint, "--remove", "2", "--method", "linear_fold", *ONE_KIND)

    assert code == 0
    assert "Ledger of the cut of layer" in printed
    assert "Nothing was changed. Layer 1 was left as it was: refitted, the loss on held-out rows" in printed
    assert "Wrote" not in printed


def test_shrink_tells_every_step(checkpoint: str, shortviz: Run) -> None:
    code, printed, _ = shortviz("shrink", checkpoint, "--to-layers", "4", *SMALL, "--json")

    found = json.loads(printed)
    assert code == 0
    assert (found["layers"], found["complete"], found["export"]) == (4, True, None)
    assert [len(step["removed"]) for step in found["steps"]] == [1, 2]
    assert [step["name"] for step in found["ledger"]["steps"]][:2] == ["uncut", "cut"]
    assert found["ledger"]["text"]["source"].endswith("which the layers were chosen on")


def counted(told: list[bool]) -> Callable[..., object]:
    from shortviz.repair.shrink import _Shrinking

    own = _Shrinking._step

    def step(shrinking: _Shrinking) -> object:
        told.append(not shrinking.steps)
        return own(shrinking)

    return step


def test_a_shrinking_that_was_killed_goes_on_to_the_same_result(
    checkpoint: str, shortviz: Run, tmp_path: Path, unfinished: Callable[[], list[Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    command = ("shrink", checkpoint, "--to-layers", "3", *SMALL, "--json")
    whole = json.loads(shortviz(*command)[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "shortviz", *command, "--out", str(run)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    ends = time.monotonic() + 300
    while not unfinished() and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    begun = unfinished()
    assert len(begun) == 1
    assert not (run / "run.json").exists()

    code, printed, err = shortviz(*command, "--method", "linear_fold")
    assert code == 0, err
    assert unfinished() == begun, "other work begins anew, and leaves this where it is"
    told = []
    monkeypatch.setattr("shortviz.repair.shrink._Shrinking._step", counted(told))
    code, printed, err = shortviz(*command, "--out", str(run))
    assert len(told) == 2, "one of three steps was done before"
    assert not unfinished()

    assert code == 0, err
    again = json.loads(printed)
    assert [step["removed"] for step in again["steps"]] == [step["removed"] for step in whole["steps"]]
    assert [step["nll"] for step in again["steps"]] == pytest.approx([step["nll"] for step in whole["steps"]], abs=1e-6)
    assert sorted(path.name for path in run.iterdir()) == ["run.json"]
    code, printed, _ = shortviz("advise", str(run), "--layers", "3")
    assert code == 0
    assert "which the layers were chosen on" in printed


REFUSED = [
    (("repair", "--remove", "2", "--out", "x", "--export", "x"), "was given twice; give --out and --export a folder"),
    (("repair",), "Nothing says what to remove"),
    (("repair", "--remove", "0"), "The cut begins at layer 0"),
    (("repair", "--remove", "2", "--method", "glue"), "There is no repair called 'glue'"),
    (
        ("shrink", "--to-layers", "4", "--method", "linear_replacement"),
        "choose seam_refit, seam_trained, linear_fold, scale.",
    ),
    (("repair", "--remove", "2", "--fit-tokens", "64"), "--fit-tokens is 64; a repair is fitted on some rows"),
    (("repair", "--remove", "2", "--eval-key", "text"), "--eval-key text names a column of a file"),
    (("repair", "--remove", "2", "--eval-text", "a.txt", "--eval-builtin", "passages"), "both name a text"),
    (("shrink", "--to-layers", "6"), "The model has 6 layers and is to have 6; give 1 to 5."),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message[:24] for _, message in REFUSED])
def test_bad_input_is_told_in_one_sentence(
    checkpoint: str, shortviz: Run, arguments: tuple[str, ...], message: str
) -> None:
    command, *rest = arguments
    code, printed, err = shortviz(command, checkpoint, *SMALL, *rest)

    assert code == 2
    assert printed == ""
    assert message in err
    assert "Traceback" not in err


def test_what_is_wrong_with_the_evaluation_text_names_its_own_options(
    checkpoint: str, shortviz: Run, tmp_path: Path
) -> None:
    table = tmp_path / "a.jsonl"
    table.write_text('{"body": "some words", "chat": [{"role": "user", "content": "Up?"}]}\n' * 9)
    for options, message in (
        ((), "Choose one of them with --eval-key; the longest text is in 'body' (--eval-key body)."),
        (("--eval-key", "chat"), "--eval-chat-template is needed: the file a.jsonl, column chat holds chats"),
        (("--eval-special-tokens", "odd"), "--eval-special-tokens is 'odd'; it must be auto, literal or parsed."),
    ):
        named = ("--remove", "2", "--eval-text", str(table))
        code, printed, err = shortviz("repair", checkpoint, *SMALL, *named, *options)
        assert (code, printed) == (2, "")
        assert message in err


@pytest.mark.parametrize(
    ("fitted", "scored", "warns"),
    [("passages/prose", "passages", True), ("passages", "passages", True), ("passages/prose", "passages/maths", False)],
)
def test_scoring_on_the_text_that_was_fitted_to_is_warned_of(
    capsys: pytest.CaptureFixture[str], fitted: str, scored: str, warns: bool
) -> None:
    warn_same_text(TextSpec(kind="builtin", value=fitted), TextSpec(kind="builtin", value=scored))
    assert ("the same text, so the figures flatter" in capsys.readouterr().err) is warns


@pytest.mark.parametrize("error", [ResourceError("The disk is full."), ValueError("a fault of ours")])
def test_a_fault_while_a_repair_is_scored_says_where_it_is_kept(shortviz, checkpoint, monkeypatch, error):
    own = CutLedger._score

    def fails(self, model, name):
        if model.treatments:
            raise error
        return own(self, model, name)

    monkeypatch.setattr(CutLedger, "_score", fails)
    code, out, err = shortviz(
        "repair", checkpoint, "--start", "2", "--n", "2", "--method", "scale", "--builtin", "passages/prose",
        "--fit-tokens", "2048", "--max-length", "64", "--eval-builtin", "passages/maths",
        "--window", "32", "--windows", "3",
    )  # fmt: skip
    assert (code, out) == (2 if isinstance(error, ResourceError) else 1, "")
    kept = re.search(r"What was computed is kept in (\S+): run the same command again", err)
    assert kept is not None, err
    assert Path(kept[1]).is_file()
