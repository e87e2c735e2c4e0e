"""`shortviz heal` on a tiny checkpoint."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from shortviz.measure.losses import evaluate
from shortviz.model.load import load
from shortviz.progress import Watch
from shortviz.records.json import plain
from shortviz.records.model import ModelRef
from shortviz.records.text import TextSpec, WindowSpec
from shortviz.runs.run import load_run
from shortviz.text.tokens import make_windows
from tests.support.paths import ROOT

CUT = ("--start", "2", "--n", "2")
TEXT = ("--builtin", "passages/prose", "--eval-builtin", "passages/maths", "--window", "32", "--windows", "3")
RECIPE = (
    *("--preset", "quick", "--steps", "6", "--warmup-steps", "1", "--length", "32", "--train-batch", "2"),
    *("--eval-every", "2", "--rank", "4", "--learning-rate", "0.01"),
)


def press_ctrl_c_at_step_3(patch: pytest.MonkeyPatch) -> None:
    """Let the training hear Ctrl-C when it tells of its third step."""
    from shortviz.heal import heal

    own = heal.heal

    def interrupted(*arguments, watch, **options):
        def press(progress):
            watch.report(progress)
            if progress.done == 3:
                os.kill(os.getpid(), signal.SIGINT)

        return own(*arguments, watch=Watch(press, watch.stop), **options)

    patch.setattr(heal, "heal", interrupted)


def steps_of(found: dict) -> dict[str, dict]:
    return {step["name"]: step for step in found["ledger"]["steps"]}


def test_heal_prints_cut_repaired_and_healed_on_the_same_windows(shortviz, checkpoint):
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--repair", "seam_refit")
    assert code == 0, err
    assert "Ledger of the cut of layers 2-3" in out
    assert "won back" in out
    assert "Trained 3,840 parameters, 6 of 6 steps" in out
    assert "its end held out" in out


def test_the_repair_before_a_training_is_fitted_to_as_many_tokens_as_asked_for(shortviz, checkpoint):
    text = ("--builtin", "python-reference", "--limit", "40", *TEXT[2:])
    fitted = ("--repair", "seam_refit", "--fit-tokens", "1024", "--max-length", "64")
    code, out, err = shortviz("heal", checkpoint, *CUT, *text, *RECIPE, *fitted, "--json")
    assert code == 0, err
    (repair, _) = json.loads(out)["ledger"]["steps"][-1]["treatments"]
    assert repair["text"]["tokens"] == 1024


def test_heal_trains_on_what_the_uncut_model_writes_and_says_how(shortviz, checkpoint, tmp_path):
    prompts, own = tmp_path / "prompts.txt", ("--self-tokens", "2000", "--self-length", "24")
    prompts.write_text("One day a\nTwo days or\n")
    code, out, err = shortviz("heal", checkpoint, *CUT, "--text", "self", *TEXT[2:], *RECIPE, *own, "--json")
    assert code == 0, err
    text = json.loads(out)["treatment"]["text"]
    assert text["source"].startswith("text that tiny-llama")
    assert "seed 0, up to 24 tokens after each of 38 built-in prompts, which stand in front" in text["told"]
    assert "wrote itself, its end held out" in json.loads(out)["treatment"]["settings"]["heldout_text"]
    command = ("heal", checkpoint, *CUT, *TEXT, *RECIPE, *own, "--self-share", "0.25", "--prompts", str(prompts))
    code, out, err = shortviz(*command)
    assert code == 0, err
    assert "windows) and built-in passages/prose, its end held out" in out
    prompts.write_text("\n")
    code, out, err = shortviz(*command)
    assert (code, err.splitlines()[-1]) == (2, "The file prompts.txt is empty; give some text.")
    code, out, err = shortviz("heal", checkpoint, *CUT, "--text", "self", "--self-share", "0")
    assert (code, err.splitlines()[-1]) == (2, "--self-share is 0; it must be above 0 and at most 1.")


def test_a_healed_model_is_exported_with_proof_and_its_loss_after_reload_is_the_one_shown(
    shortviz, checkpoint, tmp_path
):
    export, adapter, run = (tmp_path / name for name in ("healed", "adapter", "run"))
    places = ("--export", str(export), "--adapter", str(adapter), "--out", str(run), "--anyway")
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, *places, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["export"]["max_logit_diff"] == 0.0
    steps = steps_of(found)
    assert list(steps) == ["uncut", "cut", "healed"]
    shown = steps["healed"]["evaluation"]["score"]["nll"]
    again = load(ModelRef(id=str(export)))
    spec = TextSpec(kind="builtin", value="passages/maths")
    windows = make_windows(spec, WindowSpec(window=32, windows=3), again.tokenizer)
    assert evaluate(again, windows).score.nll == pytest.approx(shown, abs=1e-5)
    assert steps["healed"]["recovered"] == pytest.approx(
        1
        - (shown - steps["uncut"]["evaluation"]["score"]["nll"])
        / (steps["cut"]["evaluation"]["score"]["nll"] - steps["uncut"]["evaluation"]["score"]["nll"])
    )
    assert (adapter / "adapter_model.safetensors").is_file()
    assert sorted(path.name for path in run.iterdir()) == ["run.json"], "a complete training leaves no checkpoint"
    saved = load_run(run).ledgers
    assert [step.name for step in saved[0].steps] == ["uncut", "cut", "healed"]


def test_what_wins_only_where_it_was_trained_is_said_first_and_written_only_when_asked_for(
    shortviz, checkpoint, tmp_path, unfinished
):
    out, adapter, text = tmp_path / "healed", tmp_path / "adapter", tmp_path / "digits.txt"
    text.write_text("0123456789 " * 400)  # what helps on this is no help on prose
    recipe = (*RECIPE, "--steps", "60", "--learning-rate", "0.03", "--objective", "next_token")
    scored = ("--text", str(text), "--eval-builtin", "passages", "--window", "64", "--windows", "160")
    command = ("heal", checkpoint, *CUT, *scored, *recipe)
    places = ("--export", str(out), "--adapter", str(adapter))
    code, printed, err = shortviz(*command, *places)
    assert code == 2
    told = printed.splitlines()[0]
    assert told.startswith("On built-in passages, healed (lora) is worse than what it began from: NLL +")
    assert told.endswith("nats against cut, paired over 160 windows.")
    last = err.splitlines()[-1]
    assert last.startswith(told[:-1])
    assert "nothing was written; give --anyway to write it all the same. What was computed is kept in" in last
    assert "The adapter alone" not in printed
    assert not out.exists()
    assert not adapter.exists()
    assert unfinished()
    code, printed, err = shortviz(*command, *places, "--anyway", "--json")
    assert code == 0, err
    found = json.loads(printed)
    assert (found["applied"], found["verdict"]) == (True, told)
    assert found["export"]["max_logit_diff"] == 0.0
    assert adapter.is_dir()
    assert not unfinished()
    card = (out / "README.md").read_text()
    assert f"## After the cut\n\n**{told}** It helps on the text it was fitted to" in card
    assert "--anyway --export" in card, "the recipe writes it too"
    assert json.loads((out / "shortviz.json").read_text())["verdict"] == told


def test_ctrl_c_keeps_the_best_and_the_same_command_goes_on(shortviz, checkpoint, tmp_path, unfinished, monkeypatch):
    run, whole = tmp_path / "run", shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--json")[1]
    with monkeypatch.context() as patch:
        press_ctrl_c_at_step_3(patch)
        code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--out", str(run), "--json")
    assert code == 130
    assert "Stopped after 3 of 6 steps" in err
    assert "run the same command again" in err
    assert json.loads(out)["history"]["points"][-1]["step"] == 3
    (begun,) = unfinished()
    assert f"to go on from {begun}" in err
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--rank", "8", "--json")
    assert json.loads(out)["history"]["points"][0]["step"] == 0, "another recipe is another training"
    assert unfinished() == [begun]
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--out", str(run), "--json")
    assert code == 0, err
    losses = [[p["loss"] for p in json.loads(text)["history"]["points"][1:]] for text in (out, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert not unfinished()


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


def test_without_peft_the_install_command_is_told_before_a_model_is_loaded(shortviz, checkpoint, tmp_path, monkeypatch):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    monkeypatch.setitem(sys.modules, "peft", None)
    for command in (
        ("heal", checkpoint, *CUT, *TEXT, *RECIPE),
        ("evaluate", checkpoint, "--adapter", str(adapter)),
        ("prune", checkpoint, "--adapter", str(adapter), "--out", str(tmp_path / "out")),
    ):
        code, out, err = shortviz(*command)
        assert (code, out) == (2, "")
        assert "run `pip install peft`" in err.splitlines()[-1]
        assert command[0] != "heal" or len(err.splitlines()) == 1
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--method", "partial", "--last-layers", "1")
    assert code == 0, err


def test_a_loss_that_turns_nan_is_told_with_its_step_and_the_ledger_is_kept(
    shortviz, checkpoint, tmp_path, monkeypatch
):
    from shortviz.heal.objectives import Objective

    own, run = Objective.backward, tmp_path / "run"
    monkeypatch.setattr(Objective, "backward", lambda *arguments: own(*arguments) * math.nan)
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--out", str(run))
    assert (code, out) == (2, ""), err
    assert "The loss became NaN or Inf at step 1" in err.splitlines()[-1]
    assert "lower the learning rate (0.01)" in err.splitlines()[-1]
    assert [step.name for step in load_run(run).ledgers[0].steps] == ["uncut", "cut"]


def test_where_memory_runs_out_in_training_the_need_is_told(shortviz, checkpoint, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("shortviz.heal.objectives.Objective.backward", full)
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE)
    assert (code, out) == (2, "")
    assert "The memory of cpu ran out: this training needs about" in err.splitlines()[-1]
    assert "choose a shorter length" in err.splitlines()[-1]


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
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--adapter", adapter, "--anyway", "--json")
    assert code == 0, err
    shown = steps_of(json.loads(out))["healed"]["evaluation"]["score"]["nll"]
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


def test_an_adapter_of_a_repaired_cut_brings_the_repair_along_and_goes_on_the_uncut_model(
    shortviz, checkpoint, tmp_path
):
    adapter, healed = (str(tmp_path / name) for name in ("adapter", "healed"))
    recipe = (*RECIPE, "--repair", "seam_refit")
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *recipe, "--adapter", adapter, "--anyway", "--json")
    assert code == 0, err
    steps = steps_of(json.loads(out))
    shown = steps["healed"]["evaluation"]["score"]["nll"]
    assert [t["method"] for t in steps["healed"]["treatments"]] == ["seam_refit", "lora"]
    scored = ("--builtin", "passages/maths", "--window", "32", "--windows", "3", "--json")
    for cut in ((), CUT):
        code, out, err = shortviz("evaluate", checkpoint, *cut, "--adapter", adapter, *scored)
        assert code == 0, err
        assert json.loads(out)["nll"] == pytest.approx(shown, abs=1e-6)
    code, out, err = shortviz("prune", checkpoint, "--adapter", adapter, "--out", healed, "--json")
    assert (code, json.loads(out)["removed"]) == (0, [2, 3]), err
    code, out, err = shortviz("evaluate", healed, *scored)
    assert json.loads(out)["nll"] == pytest.approx(shown, abs=1e-5)
    card = (Path(adapter) / "README.md").read_text()
    assert f"shortviz evaluate {Path(checkpoint).name} --adapter adapter" in card

    (Path(adapter) / "repaired.safetensors").write_bytes(b"cut short")
    code, out, err = shortviz("evaluate", checkpoint, "--adapter", adapter, *scored)
    assert (code, "repaired weights beside the adapter" in err) == (2, True)
    config = Path(adapter) / "adapter_config.json"
    fields = json.loads(config.read_text())
    del fields["auto_mapping"]["shortviz"]["repairs"]  # as an adapter that was written without them
    config.write_text(json.dumps(fields))
    code, out, err = shortviz("evaluate", checkpoint, "--adapter", adapter, *scored)
    assert code == 2
    assert "treated by seam_refit, and this is" in err
    assert "with the command in its README.md, and give the folder that it wrote as the model" in err


def test_a_training_that_helps_nothing_is_told_and_not_recorded(shortviz, checkpoint, tmp_path):
    adapter, run = tmp_path / "adapter", tmp_path / "run"
    places = ("--adapter", str(adapter), "--out", str(run))
    code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, *places, "--learning-rate", "1e-12")
    assert code == 0, err
    assert "Nothing was changed. The training was not applied: no step was better" in out
    assert "No adapter was written" in err
    assert not adapter.exists()
    assert [step.name for step in load_run(run).ledgers[0].steps] == ["uncut", "cut"]


@pytest.mark.parametrize("command", ["heal", "repair", "shrink"])
def test_a_disk_without_room_for_the_export_is_told_before_the_work(
    command, shortviz, checkpoint, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shortviz.export.folder.shutil.disk_usage", lambda _: usage._replace(free=1000))
    told = []
    # shrink first: imported while repair is patched, it would keep what is put there
    for module, name in (("repair.shrink", "repair"), ("repair.shrink", "shrink"), ("repair.repair", "repair"),
                         ("heal.heal", "heal")):  # fmt: skip
        monkeypatch.setattr(import_module(f"shortviz.{module}"), name, lambda *_, **__: told.append("begun"))
    recipe = (*RECIPE, "--repair", "scale") if command == "heal" else ("--fit-tokens", "1024", "--max-length", "64")
    goal = ("--to-layers", "5") if command == "shrink" else CUT
    code, _, err = shortviz(command, checkpoint, *goal, *TEXT, *recipe, "--export", str(tmp_path / "made"))
    assert code == 2, err
    assert "The checkpoint needs" in err
    assert not told


def test_what_could_not_be_written_is_told_before_the_training(shortviz, checkpoint, tmp_path):
    for options, said in (
        (("--export", str(tmp_path / "x"), "--adapter", str(tmp_path / "x")), "was given twice"),
        (("--out", str(tmp_path / "x"), "--export", str(tmp_path / "x")), "was given twice"),
        (("--repair", "linear_replacement"), "choose seam_refit, seam_trained, linear_fold, scale"),
        (("--export", f"{Path(checkpoint) / 'config.json'}/made"), "config.json (it is a file); choose a folder"),
        (("--out", f"{Path(checkpoint) / 'config.json'}"), "config.json (it is a file); choose a folder"),
    ):
        code, out, err = shortviz("heal", checkpoint, *CUT, *TEXT, *RECIPE, *options)
        assert (code, out) == (2, "")
        assert said in err
        assert len(err.strip().splitlines()) == 1


WORK = {
    "heal": ("heal.heal", "heal", (*CUT, *TEXT, *RECIPE)),
    "repair": ("repair.repair", "repair", (*CUT, *TEXT, "--fit-tokens", "1024", "--max-length", "64")),
    "shrink": ("repair.shrink", "shrink", ("--to-layers", "4", *TEXT, "--fit-tokens", "1024", "--max-length", "64")),
}


@pytest.mark.parametrize("command", WORK)
@pytest.mark.parametrize("with_out", [True, False], ids=["with a run", "without"])
def test_an_export_that_fails_at_the_end_loses_no_work_and_the_same_command_goes_on(
    command, with_out, shortviz, checkpoint, tmp_path, unfinished, monkeypatch
):
    module, name, options = WORK[command]
    export = tmp_path / "healed"
    run = tmp_path / "run"
    whole = steps_of(json.loads(shortviz(command, checkpoint, *options, "--json")[1]))
    own = getattr(import_module(f"shortviz.{module}"), name)

    def and_take_the_folder(*arguments, **settings):
        export.mkdir()
        (export / "mine.txt").write_text("somebody's")
        return own(*arguments, **settings)

    places = ("--export", str(export), *(("--out", str(run)) if with_out else ()), "--anyway", "--json")
    with monkeypatch.context() as patch:
        patch.setattr(import_module(f"shortviz.{module}"), name, and_take_the_folder)
        code, _, err = shortviz(command, checkpoint, *options, *places)
    assert code == 2, err
    assert "is not empty" in err.splitlines()[-1]
    work = unfinished()[0]
    assert work.name.startswith(command)
    assert f"is kept in {work}: run the same command again to go on" in err.splitlines()[-1]
    assert [path.name for path in export.iterdir()] == ["mine.txt"]
    shown = steps_of({"ledger": plain(load_run(run).ledgers[0])}) if with_out else whole

    (export / "mine.txt").unlink()
    told = []
    for place in ("repair.shrink.repair", "repair.repair.repair", "heal.training.Training._advance"):
        monkeypatch.setattr(f"shortviz.{place}", lambda *_, **__: told.append("done again"))
    code, out, err = shortviz(command, checkpoint, *options, *places)
    assert code == 0, err
    assert not told
    again = json.loads(out)
    assert again["export"]["max_logit_diff"] == 0.0
    last = list(shown)[-1]
    assert steps_of(again)[last]["evaluation"]["score"]["nll"] == shown[last]["evaluation"]["score"]["nll"]
    assert [untimed(t) for t in steps_of(again)[last]["treatments"]] == [untimed(t) for t in shown[last]["treatments"]]
    assert run.is_dir() == with_out
    assert not unfinished()


def untimed(treatment: dict) -> dict:
    return treatment | {"seconds": 0}


def test_a_training_without_a_run_that_is_stopped_goes_on_from_where_it_is_kept(
    shortviz, checkpoint, tmp_path, unfinished, monkeypatch
):
    command = ("heal", checkpoint, *CUT, *TEXT, *RECIPE, "--adapter", str(tmp_path / "a"), "--anyway", "--json")
    with monkeypatch.context() as patch:
        press_ctrl_c_at_step_3(patch)
        code, _, err = shortviz(*command)
    assert code == 130
    (work,) = unfinished()
    assert f"run the same command again to go on from {work}" in err
    code, out, err = shortviz(*command)
    assert code == 0, err
    assert [point["step"] for point in json.loads(out)["history"]["points"]] == list(range(7))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    assert not unfinished()
