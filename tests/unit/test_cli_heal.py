"""`shortviz heal` on a tiny checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from shortviz import cli_heal_work
from shortviz.loading import load
from shortviz.losses import evaluate
from shortviz.records import ModelRef, TextSpec, WindowSpec
from shortviz.runs import load_run
from shortviz.texts import make_windows

ROOT = Path(__file__).resolve().parents[2]
CUT = ("--start", "2", "--n", "2")
TEXT = ("--builtin", "passages/prose", "--eval-builtin", "passages/maths", "--window", "32", "--windows", "3")
RECIPE = (
    *("--preset", "quick", "--steps", "6", "--warmup-steps", "1", "--length", "32", "--train-batch", "2"),
    *("--eval-every", "2", "--rank", "4", "--learning-rate", "0.01"),
)


def steps_of(found: dict) -> dict[str, dict]:
    return {step["name"]: step for step in found["ledger"]["steps"]}


def test_heal_prints_cut_repaired_and_healed_on_the_same_windows(shortviz, checkpoint):
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--repair", "seam_refit")
    assert code == 0, err
    assert "Ledger of the cut of layers 2-3" in out
    assert "won back" in out
    assert "Trained 3,840 parameters, 6 of 6 steps" in out
    assert "its end held out" in out


def test_a_healed_model_is_exported_with_proof_and_its_loss_after_reload_is_the_one_shown(
    shortviz, checkpoint, tmp_path
):
    export, adapter, run = (tmp_path / name for name in ("healed", "adapter", "run"))
    places = ("--export", str(export), "--adapter", str(adapter), "--out", str(run))
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, *places, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["export"]["max_logit_diff"] == 0.0
    steps = steps_of(found)
    assert list(steps) == ["uncut", "cut", "healed"]
    shown = steps["healed"]["evaluation"]["nll"]
    again = load(ModelRef(id=str(export)))
    spec = TextSpec(kind="builtin", value="passages/maths")
    windows = make_windows(spec, WindowSpec(window=32, windows=3), again.tokenizer)
    assert evaluate(again, windows).score.nll == pytest.approx(shown, abs=1e-5)
    assert steps["healed"]["recovered"] == pytest.approx(
        1
        - (shown - steps["uncut"]["evaluation"]["nll"])
        / (steps["cut"]["evaluation"]["nll"] - steps["uncut"]["evaluation"]["nll"])
    )
    assert (adapter / "adapter_model.safetensors").is_file()
    assert sorted(path.name for path in run.iterdir()) == ["run.json"], "a complete training leaves no checkpoint"
    saved = load_run(run).ledgers
    assert [step.name for step in saved[0].steps] == ["uncut", "cut", "healed"]


def test_ctrl_c_keeps_the_best_and_the_same_command_goes_on(shortviz, checkpoint, tmp_path, monkeypatch):
    run, whole = tmp_path / "run", shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--json")[1]
    from shortviz import healing

    own = healing.heal

    def interrupted(*arguments, on_progress, **options):
        def press(progress):
            on_progress(progress)
            if progress.done == 3:
                os.kill(os.getpid(), signal.SIGINT)

        return own(*arguments, on_progress=press, **options)

    with monkeypatch.context() as patch:
        patch.setattr(healing, "heal", interrupted)
        code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--out", str(run), "--json")
    assert code == 130
    assert "Stopped after 3 of 6 steps" in err
    assert "run the same command again" in err
    assert json.loads(out)["history"]["points"][-1]["step"] == 3
    assert (run / cli_heal_work.CHECKPOINT).is_file()
    code, _, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--out", str(run), "--rank", "8")
    assert code == 2
    assert "rank was 4 and is 8" in err
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--out", str(run), "--json")
    assert code == 0, err
    losses = [[p["loss"] for p in json.loads(text)["history"]["points"][1:]] for text in (out, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Nothing says what to remove"),
        ((*CUT, "--preset", "fast"), "no preset 'fast'"),
        ((*CUT, "--objective", "loss"), "objective is 'loss'"),
        ((*CUT, "--repair", "glue"), "no repair called 'glue'"),
        ((*CUT, "--method", "partial", "--adapter", "somewhere"), "makes no adapter"),
        ((*CUT, "--export", "."), "is not empty"),
        ((*CUT, *TEXT, "--limit", "2", "--length", "32", "--rank", "900"), "need at least"),
        ((*CUT, *TEXT, "--length", "64", "--quantize", "4bit"), "4 bits needs a CUDA device"),
        ((*CUT, "--text", "nowhere.txt"), "no file nowhere.txt"),
    ],
)
def test_what_cannot_be_healed_is_refused_in_a_sentence(shortviz, checkpoint, arguments, message):
    code, out, err = shortviz("heal", checkpoint, *arguments)
    assert code == 2
    assert out == ""
    assert message in err.splitlines()[-1]


def test_two_processes_train_one_model(shortviz, checkpoint):
    """Each has windows of its own: two processes with one window each make the steps of one with two."""
    alone, pair = (
        (checkpoint, "--remove", "2-3", *TEXT, *RECIPE, "--json", "--train-batch", size) for size in ("2", "1")
    )
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    done = subprocess.run([*launch, "shortviz", "heal", *pair], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    together, one = (json.loads(found) for found in (line, shortviz("heal", *alone)[1]))
    losses = [[p["loss"] for p in found["history"]["points"][1:]] for found in (together, one)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert together["treatment"]["settings"]["processes"] == 2
    assert together["history"]["best_nll"] == pytest.approx(one["history"]["best_nll"], abs=1e-5)


def test_an_adapter_is_evaluated_and_written_on_its_own_cut_and_refused_on_others(shortviz, checkpoint, tmp_path):
    adapter, cut = str(tmp_path / "adapter"), str(tmp_path / "cut")
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--adapter", adapter, "--json")
    assert code == 0, err
    shown = steps_of(json.loads(out))["healed"]["evaluation"]["nll"]
    scored = ("--builtin", "passages/maths", "--window", "32", "--windows", "3", "--json")
    code, out, err = shortviz("evaluate", checkpoint, "--adapter", adapter, *scored)
    assert code == 0, err
    assert (json.loads(out)["nll"], json.loads(out)["removed"]) == (pytest.approx(shown, abs=1e-6), [2, 3])
    assert shortviz("prune", checkpoint, *CUT, "--out", cut)[0] == 0
    code, out, err = shortviz("evaluate", cut, "--adapter", adapter, *scored)
    assert code == 0, err
    assert json.loads(out)["nll"] == pytest.approx(shown, abs=1e-5)
    healed = str(tmp_path / "healed")
    code, out, err = shortviz("prune", checkpoint, "--adapter", adapter, "--out", healed, "--json")
    assert code == 0, err
    assert json.loads(out)["removed"] == [2, 3]
    code, out, err = shortviz("evaluate", healed, *scored)
    assert json.loads(out)["nll"] == pytest.approx(shown, abs=1e-5)
    for arguments, said in (
        (("evaluate", checkpoint, "--remove", "1", "--adapter", adapter), "belongs to the cut of layers 2-3, not of 1"),
        (("evaluate", healed, "--adapter", adapter), "and this is healed (LlamaForCausalLM, 4 layers)"),
        (("evaluate", checkpoint, "--adapter", cut), "no adapter in"),
        (("prune", checkpoint, "--adapter", adapter, "--out", healed), "is not empty"),
    ):
        code, out, err = shortviz(*arguments)
        assert (code, out) == (2, "")
        assert said in err.splitlines()[-1]


def test_a_training_that_helps_nothing_is_told_and_not_recorded(shortviz, checkpoint, tmp_path):
    adapter, run = tmp_path / "adapter", tmp_path / "run"
    places = ("--adapter", str(adapter), "--out", str(run))
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, *places, "--learning-rate", "1e-12")
    assert code == 0, err
    assert "Nothing was changed. The training was not applied: no step was better" in out
    assert "No adapter was written" in err
    assert not adapter.exists()
    assert [step.name for step in load_run(run).ledgers[0].steps] == ["uncut", "cut"]


@pytest.mark.parametrize("command", ["heal", "repair"])
def test_a_disk_without_room_for_the_export_is_told_before_the_work(
    command, shortviz, checkpoint, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shortviz.checkpoint_folder.shutil.disk_usage", lambda _: usage._replace(free=1000))
    told = []
    for module, name in (("shortviz.healing", "heal"), ("shortviz.repair", "repair")):
        monkeypatch.setattr(import_module(module), name, lambda *_, **__: told.append("begun"))
    recipe = RECIPE if command == "heal" else ("--fit-tokens", "1024", "--max-length", "64")
    code, _, err = shortviz(command, checkpoint, *CUT, *TEXT, *recipe, "--export", str(tmp_path / "made"))
    assert code == 2, err
    assert "The checkpoint needs" in err
    assert not told


def test_what_could_not_be_written_is_told_before_the_training(shortviz, checkpoint, tmp_path):
    for options, said in (
        (("--export", str(tmp_path / "x"), "--adapter", str(tmp_path / "x")), "was given twice"),
        (("--out", str(tmp_path / "x"), "--export", str(tmp_path / "x")), "was given twice"),
        (("--repair", "linear_replacement"), "has no place in a stock model"),
    ):
        code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, *options)
        assert (code, out) == (2, "")
        assert said in err
        assert len(err.strip().splitlines()) == 1


def test_an_export_that_is_refused_after_the_training_loses_neither_ledger_nor_training(
    shortviz, checkpoint, tmp_path, monkeypatch
):
    run, export = tmp_path / "run", tmp_path / "healed"
    from shortviz import healing

    own = healing.heal

    def and_take_the_folder(*arguments, **options):
        export.mkdir(exist_ok=True)
        (export / "mine.txt").write_text("somebody's")
        return own(*arguments, **options)

    monkeypatch.setattr(healing, "heal", and_take_the_folder)
    places = ("--export", str(export), "--out", str(run))
    code, _, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, *places)
    assert code == 2, err
    assert [step.name for step in load_run(run).ledgers[0].steps] == ["uncut", "cut", "healed"]
    assert (run / cli_heal_work.CHECKPOINT).is_file()
    assert [path.name for path in export.iterdir()] == ["mine.txt"]
