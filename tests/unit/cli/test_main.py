"""The command line on a tiny checkpoint: output, JSON shapes, exit codes, one sentence for an error."""

import json
import signal
import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM

from shortviz.cli.session import run_command
from tests.support.command import last_line
from tests.support.families import NUM_LAYERS

GRAM = ("angular_last", "angular_mean", "block_influence", "euclidean_last", "relative_magnitude")
"""Criteria that every row gives a sample of."""


def test_measure_prints_the_run_as_one_json_object(shortviz, checkpoint):
    text = ("--limit", "3", "--max-length", "16")
    code, out, err = shortviz("measure", checkpoint, *text, "--criteria", ",".join(GRAM), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["schema"] == 2
    assert found["model"]["num_layers"] == NUM_LAYERS
    assert found["text"]["rows"] == 3
    assert tuple(found["distances"]["criteria"]) == GRAM
    for grid in found["distances"]["criteria"].values():
        assert grid["samples"] == 3
        assert [len(row) for row in grid["mean"]] == list(range(NUM_LAYERS, 0, -1))
        assert [len(row) for row in grid["stderr"]] == list(range(NUM_LAYERS, 0, -1))
    assert "6 layers" in err
    assert "measure: 3/3 rows" in err


def test_a_named_file_is_used_whole_and_the_default_text_has_its_own_limit(shortviz, checkpoint, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"body": f"Row {i}."}) + "\n" for i in range(70)))
    command = ("measure", checkpoint, "--text", str(rows), "--key", "body", "--max-length", "8", "--json")
    assert json.loads(shortviz(*command)[1])["text"]["rows"] == 70
    assert json.loads(shortviz(*command, "--limit", "5")[1])["text"]["rows"] == 5
    assert json.loads(shortviz("measure", checkpoint, "--max-length", "4", "--json")[1])["text"]["rows"] == 64


def test_measure_of_chosen_criteria_prints_the_best_block_of_each_size(shortviz, checkpoint):
    code, out, _ = shortviz("measure", checkpoint, "--limit", "2", "--max-length", "8", "--criteria", "block_influence")
    assert code == 0
    assert "block_influence" in out
    assert "angular_last" not in out
    assert "Layers that write the attention sink:" in out


def test_a_criterion_that_scores_some_rows_only_is_still_a_whole_measurement(shortviz, checkpoint, tmp_path):
    options = ("--limit", "9", "--max-length", "8", "--criteria", "linear_replacement", "--out", str(tmp_path / "run"))
    code, out, err = shortviz("measure", checkpoint, *options)
    assert code == 0, err
    assert "; 9 rows of at most 8 tokens" in out
    assert "; 9 rows of at most 8 tokens" in shortviz("show", str(tmp_path / "run"))[1]


def test_a_run_directory_is_shown_again_and_keeps_no_checkpoint_once_it_is_complete(shortviz, checkpoint, tmp_path):
    run = tmp_path / "run"
    options = ("--limit", "2", "--max-length", "8", "--out", str(run))
    assert shortviz("measure", checkpoint, *options)[0] == 0
    assert [file.name for file in run.iterdir()] == ["run.json"]
    code, out, _ = shortviz("show", str(run), "--json")
    assert code == 0
    assert json.loads(out) == json.loads((run / "run.json").read_text())
    code, out, _ = shortviz("show", str(run))
    assert code == 0
    assert "Best block of each size by" in out
    assert shortviz("measure", checkpoint, *options)[0] == 0, "the same run may be measured again"


def test_a_run_directory_of_another_text_is_refused_before_anything_is_measured(shortviz, checkpoint, tmp_path):
    run = str(tmp_path / "run")
    assert shortviz("measure", checkpoint, "--limit", "2", "--max-length", "8", "--out", run)[0] == 0
    code, out, err = shortviz("measure", checkpoint, "--limit", "3", "--max-length", "8", "--out", run)
    assert (code, out) == (2, "")
    assert "holds a run of" in last_line(err)
    assert "measure:" not in err


def test_evaluate_of_the_uncut_model_has_no_base(shortviz, checkpoint):
    code, out, _ = shortviz("evaluate", checkpoint, "--window", "32", "--windows", "3", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["removed"] == []
    assert found["base"] is None
    assert (found["windows"], found["tokens"]) == (3, 93)
    assert {"perplexity", "nll", "nll_stderr", "parameters", "bytes"} <= set(found)


@pytest.mark.parametrize(
    "plan", [("--start", "2", "--n", "2"), ("--remove", "2,3"), ("--remove", "2-3"), ("--plan", "plan.json")]
)
def test_evaluate_takes_the_layers_in_every_way(shortviz, checkpoint, tmp_path, plan):
    (tmp_path / "plan.json").write_text('{"removed": [2, 3]}')
    plan = [str(tmp_path / part) if part == "plan.json" else part for part in plan]
    code, out, _ = shortviz("evaluate", checkpoint, *plan, "--window", "32", "--windows", "2", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["removed"] == [2, 3]
    assert found["parameters"] < found["base"]["parameters"]


def test_evaluate_with_one_window_has_null_for_the_error_and_no_nan(shortviz, checkpoint):
    code, out, _ = shortviz("evaluate", checkpoint, "--remove", "1", "--window", "32", "--windows", "1", "--json")
    assert code == 0
    assert json.loads(out)["nll_stderr"] is None
    code, out, _ = shortviz("evaluate", checkpoint, "--remove", "1", "--window", "32", "--windows", "1")
    assert code == 0
    assert out.startswith("perplexity        × ")
    assert " nats), paired\n" in out


def test_evaluate_writes_what_both_models_make_of_a_prompt(shortviz, checkpoint):
    command = ("evaluate", checkpoint, "--remove", "1", "--window", "32", "--windows", "2", "--write", "The mill")
    code, out, err = shortviz(*command, "--json")
    assert code == 0, err
    written = json.loads(out)["written"]
    assert written["uncut"]
    assert written["uncut"] != written["cut"]
    assert "uncut             " in shortviz(*command)[1]
    code, out, err = shortviz(*command, "--stream")
    assert (code, out) == (2, "")
    assert last_line(err).startswith("A prompt cannot be used while a model is streamed")


def test_prune_writes_a_checkpoint_that_plain_transformers_loads_and_says_what_was_proved(
    shortviz, checkpoint, tmp_path
):
    folder = tmp_path / "pruned"
    code, out, _ = shortviz("prune", checkpoint, "--start", "1", "--n", "3", "--out", str(folder), "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["removed"], found["kept"]) == ([1, 2, 3], [0, 4, 5])
    assert found["max_logit_diff"] == 0
    assert found["generation_equal"] is True
    assert {len(digest) for digest in found["files"].values()} == {64}
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 3
    code, out, err = shortviz("prune", checkpoint, "--start", "1", "--n", "3", "--out", str(folder))
    assert (code, out) == (2, "")
    assert err == f"The folder {folder} is not empty; choose another name, or empty it first.\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("evaluate MODEL --start 5 --n 2", "Block start 5, n 2 does not fit: the model has layers 0-5"),
        ("evaluate MODEL --start 0 --n 6", "The plan removes all 6 layers; keep at least one."),
        ("evaluate MODEL --start 3", "A block needs --start and --n; --n is missing."),
        ("evaluate MODEL --n 3", "A block needs --start and --n; --start is missing."),
        ("evaluate MODEL --start 1 --n 1 --remove 3", "--start/--n and --remove both say what to remove"),
        ("evaluate MODEL --remove 9", "There is no layer 9: the model has layers 0-5."),
        ("evaluate MODEL --remove 3,x", "'x' is not a layer; write layers as 3,7,8 or 3-5,9."),
        ("evaluate MODEL --plan no.json", "The plan file no.json cannot be read (No such file or directory)."),
        ("evaluate MODEL --window 1", "The window is 1 tokens; it must be at least 2, to have one token to score."),
        ("prune MODEL --out new", "Nothing says what to remove; give --start and --n, --remove or --plan."),
        ("prune MODEL --start 1 --n 1", "Missing option '--out'"),
        ("measure", "Missing argument 'MODEL'"),
        ("measure MODEL --limit 0", "The row limit is 0; it must be at least 1."),
        ("measure MODEL --batch-size 0", "--batch-size is 0; it must be at least 1."),
        ("measure MODEL --criteria cosine", "There is no criterion 'cosine'; choose from angular_last"),
        ("measure MODEL --bos maybe", "--bos is 'maybe'; it must be auto, always or never."),
        ("measure MODEL --text no.txt", "no.txt"),
        ("measure MODEL --text a.txt --builtin passages", "--text and --builtin both name a text; give one of them."),
        ("measure MODEL --split test", "--subset and --split belong to a data set of the hub; give --dataset too."),
        ("measure MODEL --key body", "--key body names a column of a file or a data set"),
        ("measure MODEL --builtin nonsense", "nonsense"),
        ("measure no/such/folder", "no/such/folder"),
        ("show no/such/run", "There is no run in no/such/run"),
        ("measure MODEL --nonsense 3", "No such option: --nonsense"),
        ("nonsense", "No such command 'nonsense'"),
    ],
)
def test_bad_input_ends_with_code_2_and_one_sentence(shortviz, checkpoint, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    code, out, err = shortviz(*(checkpoint if part == "MODEL" else part for part in arguments.split()))
    assert (code, out) == (2, "")
    assert sentence in last_line(err)
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_debug_adds_the_traceback_wherever_it_stands(shortviz, checkpoint):
    code, _, err = shortviz("show", "no/such/run", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert last_line(err).startswith("There is no run")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")])
def test_no_memory_is_bad_input_not_a_fault_of_ours(capsys, error):
    import typer

    broken = typer.Typer()

    @broken.command()
    def fail() -> None:
        raise error

    assert run_command(broken, ["--"]) == 2
    assert capsys.readouterr().err == "There is not enough memory; choose a smaller model, batch or window.\n"


def test_a_fault_of_ours_is_told_in_one_sentence_with_code_1(capsys):
    import typer

    broken = typer.Typer()

    @broken.command()
    def fail() -> None:
        raise ValueError("the inside is wrong\nwith details")

    assert run_command(broken, ["--debug"]) == 0, "only --debug shows the help"
    capsys.readouterr()
    assert run_command(broken, ["--"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "shortviz failed (ValueError: the inside is wrong); "
        "please report this with what the same command prints with --debug.\n"
    )


def test_help_answers_without_the_heavy_imports():
    program = (
        "import sys; from shortviz.cli.main import app; from shortviz.cli.session import run_command\n"
        "assert run_command(app, ['measure', '--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'plotly', 'streamlit', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--max-length" in done.stdout


def test_ctrl_c_saves_what_there_is_and_the_same_command_goes_on(shortviz, checkpoint, tmp_path):
    run = tmp_path / "run"
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"Row {i} of many short rows."}) + "\n" for i in range(500)))
    command = ["measure", checkpoint, "--text", str(rows), "--batch-size", "1", "--out", str(run)]
    child = subprocess.Popen(
        [sys.executable, "-m", "shortviz", *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        while not child.stderr.readline().startswith("measure:"):
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "run the same command again to go on" in last_line(err)
    saved = json.loads((run / "run.json").read_text())
    partial = saved["distances"]["criteria"]["angular_last"]["samples"]
    assert 0 < partial < 500
    assert out.startswith("Text: file")
    assert shortviz(*command)[0] == 0
    whole = json.loads((run / "run.json").read_text())
    assert whole["distances"]["criteria"]["angular_last"]["samples"] == 500
