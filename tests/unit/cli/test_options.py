"""Numbers of options are refused before a model is loaded and leave nothing; options that do nothing are told."""

from dataclasses import replace
from pathlib import Path

import pytest

from shortviz.model.tokenizer import read_tokenizer
from shortviz.records.text import WindowSpec
from shortviz.runs.run import load_run, save_run
from shortviz.text.tokens import DEFAULT_EVALUATION, make_windows
from tests.support.command import last_line

TEXT = ("--builtin", "passages/prose", "--window", "24", "--windows", "2")
BLOCK = ("--start", "2", "--n", "2")
TWO = ("--builtin", "passages/prose", "--builtin", "passages/code")
HUGE = "1" + "0" * 30
HUGE_WORDS = "is a number of 31 digits; give at most 9223372036854775807."

REFUSED = [
    (("measure", "MODEL", "--batch-size", "0", "--out", "OUT"), "--batch-size is 0; it must be at least 1."),
    (("measure", "MODEL", "--windows", "0", "--out", "OUT"), "The number of windows is 0; it must be at least 1."),
    (("measure", "MODEL", "--tokens-per-row", "0", "--out", "OUT"), "--tokens-per-row is 0; it must be at least 1."),
    (("measure", "MODEL", "--limit", HUGE, "--out", "OUT"), f"--limit {HUGE_WORDS}"),
    (("sensitivity", "MODEL", *TWO, "--batch-size", "0", "--out", "OUT"), "--batch-size is 0; it must be at least 1."),
    (("sensitivity", "MODEL", *TWO, "--batch-size", "-1", "--out", "OUT"), "--batch-size is -1; it must be at least"),
    (("map", "MODEL", *TEXT, "--batch-size", "-1", "--out", "OUT"), "--batch-size is -1; it must be at least 1."),
    (("map", "MODEL", *TEXT, "--search", "--max-n", "0"), "--max-n is 0; it must be at least 1."),
    (("curve", "MODEL", *TEXT, "--greedy", "-1", "--out", "OUT"), "--greedy is -1; it must be at least 0."),
    (("curve", "MODEL", *TEXT, "--seed", "-1", "--out", "OUT"), "--seed is -1; it must be at least 0."),
    (("evaluate", "MODEL", *TEXT, "--batch-size", "0"), "--batch-size is 0; it must be at least 1."),
    (("repair", "MODEL", *BLOCK, "--batch-size", "0", "--out", "OUT"), "--batch-size is 0; it must be at least 1."),
    (("repair", "MODEL", *BLOCK, "--fit-tokens", "0", "--out", "OUT"), "--fit-tokens is 0; a repair is fitted on some"),
    (("shrink", "MODEL", "--to-layers", "0", "--out", "OUT"), "--to-layers is 0; it must be at least 1."),
    (("shrink", "MODEL", "--to-layers", "4", "--batch-size", "-1"), "--batch-size is -1; it must be at least 1."),
    (("heal", "MODEL", *BLOCK, "--windows", "0", "--out", "OUT"), "The number of windows is 0; it must be at least 1."),
    (("heal", "MODEL", *BLOCK, "--rank", HUGE, "--out", "OUT"), f"--rank {HUGE_WORDS}"),
    (("heal", "MODEL", *BLOCK, "--steps", "-1", "--out", "OUT"), "The setting steps is -1; it must be at least 1."),
    (("heal", "MODEL", *BLOCK, "--fit-tokens", "4096", "--out", "OUT"), "--fit-tokens is of a repair; give repair too"),
    (("evidence", "MODEL", *BLOCK, "--fit-tokens", "4096"), "--fit-tokens is of a repair; give repair too"),
    (("heal", "MODEL", *BLOCK, "--repair", "scale", "--fit-tokens", "9"), "--fit-tokens is 9; a repair is fitted on"),
    (("evidence", "MODEL", *BLOCK, "--batch-size", "0"), "--batch-size is 0; it must be at least 1."),
    (("estimate", "MODEL", "--rows", "0"), "--rows is 0; it must be at least 1."),
    (("estimate", "MODEL", "--max-length", "1"), "--max-length is 1; it must be at least 2."),
    (("app", "--port", "70000"), "--port is 70000; it must be 1 to 65535, or 0 for one that is free."),
]


@pytest.mark.parametrize(("command", "sentence"), REFUSED, ids=[" ".join(command)[:60] for command, _ in REFUSED])
def test_a_number_that_makes_no_sense_is_refused_before_the_model_is_looked_at(
    shortviz, checkpoint, tmp_path, command, sentence
):
    out = tmp_path / "out"
    code, printed, err = shortviz(*({"MODEL": checkpoint, "OUT": str(out)}.get(a, a) for a in command))
    assert (code, printed) == (2, "")
    assert err.strip().splitlines() == [err.strip()], "one sentence, and no word of a model"
    assert err.startswith(sentence)
    assert not out.exists()


TOO_MANY = [
    (("map", "MODEL", *TEXT, "--search", "--max-n", "6"), "The largest n to search is 6; it must be 1 to 5."),
    (("curve", "MODEL", *TEXT, "--greedy", "6", "--out", "OUT"), "The layers to remove are 6; give 1 to 5."),
    (("shrink", "MODEL", "--to-layers", "6", "--out", "OUT"), "The model has 6 layers and is to have 6; give 1 to 5."),
]


@pytest.mark.parametrize(("command", "sentence"), TOO_MANY, ids=[command[0] for command, _ in TOO_MANY])
def test_more_layers_than_there_are_are_refused_before_weights_are_read(
    shortviz, checkpoint, tmp_path, command, sentence
):
    out = tmp_path / "out"
    code, _, err = shortviz(*({"MODEL": checkpoint, "OUT": str(out)}.get(a, a) for a in command))
    assert (code, last_line(err)) == (2, sentence)
    assert "load:" not in err
    assert not out.exists()


@pytest.mark.parametrize("option", [("--sizes", "6"), ("--strategies", "deepest")])
def test_cuts_that_cannot_be_scored_are_refused_before_the_map_is_measured(shortviz, checkpoint, tmp_path, option):
    out, rows = tmp_path / "out", tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Up?", "choices": ["down", "sky"], "label": 1}\n')
    code, _, err = shortviz("curve", checkpoint, *TEXT, "--tasks", str(rows), *option, "--out", str(out))
    assert code == 2
    assert "choose" in last_line(err)
    assert "map:" not in err
    assert not out.exists()


@pytest.mark.parametrize("command", ["measure", "map", "sensitivity"])
def test_text_that_does_not_fit_the_model_leaves_no_run(shortviz, checkpoint, tmp_path, command):
    out = tmp_path / "out"
    too_long = {
        "measure": ("--max-length", "5000"),
        "map": ("--builtin", "passages", "--window", "600", "--windows", "2"),
        "sensitivity": ("--builtin", "passages/code", "--builtin", "python-reference", "--max-length", "5000"),
    }[command]
    code, _, err = shortviz(command, checkpoint, *too_long, "--out", str(out))
    assert code == 2
    assert "is longer than the model's context of 512" in last_line(err)
    assert not out.exists()


def test_a_refusal_keeps_the_run_that_was_there(shortviz, checkpoint, tmp_path):
    out = tmp_path / "out"
    assert shortviz("measure", checkpoint, "--limit", "2", "--max-length", "8", "--out", str(out))[0] == 0
    before = load_run(out).distances
    assert shortviz("measure", checkpoint, "--limit", "2", "--max-length", "5000", "--out", str(out))[0] == 2
    assert load_run(out).distances.samples == before.samples


def test_an_option_that_does_nothing_in_a_command_is_told(shortviz, checkpoint):
    _, _, err = shortviz("map", checkpoint, *TEXT, "--batch-size", "4", "--max-length", "64")
    assert "Note: --max-length and --batch-size have no effect on this command." in err
    _, _, err = shortviz("measure", checkpoint, "--limit", "2", "--max-length", "8", "--windows", "2")
    assert "Note: --windows has no effect on this command." in err
    assert "no effect" not in shortviz("evaluate", checkpoint, *TEXT)[2]


def test_the_curve_of_a_known_map_obeys_or_refuses_its_text_options(shortviz, checkpoint, tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    assert shortviz("map", checkpoint, *TEXT, "--out", str(run))[0] == 0
    assert shortviz("curve", str(run), *TEXT)[0] == 0, "the map's own options"
    code, out, err = shortviz("curve", str(run), "--windows", "4")
    assert (code, out) == (2, "")
    assert last_line(err).startswith(
        "The run's map is on built-in passages/prose, 2 windows of 24, spread over the text, and the text "
    )
    assert shortviz("curve", str(run), "--out", str(copy))[0] == 0
    assert load_run(copy).losses is not None


@pytest.mark.parametrize(
    "typed", [("--builtin", "passages"), ("--window", "512"), ("--windows", "16"), ("--order", "spread")]
)
def test_options_of_a_curve_that_name_the_usual_text_are_compared_with_the_map_too(
    shortviz, checkpoint, tmp_path, typed
):
    run = tmp_path / "run"
    assert shortviz("map", checkpoint, *TEXT, "--out", str(run))[0] == 0
    before = (run / "run.json").read_bytes()
    code, out, err = shortviz("curve", str(run), *typed)
    assert (code, out) == (2, "")
    assert last_line(err).startswith(
        "The run's map is on built-in passages/prose, 2 windows of 24, spread over the text, and the text asked for is "
        "built-in passages, "
    )
    assert (run / "run.json").read_bytes() == before


def test_the_usual_text_is_followed_by_a_curve_whose_map_is_on_it(shortviz, checkpoint, tmp_path):
    run = tmp_path / "run"
    assert shortviz("map", checkpoint, *TEXT, "--out", str(run))[0] == 0
    found, tokenizer = load_run(run), read_tokenizer(checkpoint, Path(checkpoint))
    usual = make_windows(DEFAULT_EVALUATION, WindowSpec(), tokenizer).info  # to measure it takes a minute
    save_run(replace(found, losses=replace(found.losses, text=usual)), run)
    for typed in (("--builtin", "passages"), ("--window", "512", "--windows", "16")):
        code, _, err = shortviz("curve", str(run), *typed)
        assert code == 0, err
    assert shortviz("curve", str(run), "--builtin", "passages", "--windows", "4")[0] == 2


def test_a_map_that_is_there_is_not_measured_again(shortviz, checkpoint, tmp_path):
    run = str(tmp_path / "run")
    assert shortviz("map", checkpoint, *TEXT, "--out", run)[0] == 0
    code, out, err = shortviz("map", run, *TEXT, "--metric", "kl")
    assert code == 0
    assert "The run has this map already" in err
    assert "map:" not in err
    assert "Best block of each size by measured KL" in out


def test_another_run_is_not_written_over(shortviz, checkpoint, tmp_path):
    from tests.support.families import build_tiny, tiny_tokenizer

    other: Path = tmp_path / "other-model"
    build_tiny("qwen2").save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    assert shortviz("map", checkpoint, *TEXT, "--out", ours)[0] == 0
    assert shortviz("map", str(other), *TEXT, "--out", theirs)[0] == 0
    code, _, err = shortviz("curve", ours, "--out", theirs)
    assert code == 2
    assert last_line(err).endswith("choose another folder.")
    assert load_run(Path(theirs)).model.id == str(other)


def test_a_search_of_two_windows_says_that_it_saves_nothing(shortviz, checkpoint):
    words = "the search measures two windows whole; give 3 windows or more"
    assert words in shortviz("map", checkpoint, *TEXT, "--search", "--max-n", "2")[2]
    assert words not in shortviz("map", checkpoint, *TEXT, "--windows", "3", "--search", "--max-n", "2")[2]
