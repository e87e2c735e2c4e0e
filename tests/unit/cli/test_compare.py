"""`shortviz sensitivity` and `shortviz compare` on a tiny checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from shortviz.runs.run import load_run, save_run
from tests.support.command import last_line
from tests.support.families import NUM_LAYERS

SIZE = ("--limit", "8", "--max-length", "16")
TEXTS = ("--builtin", "passages/prose", "--builtin", "passages/code")


def test_several_texts_are_measured_in_one_go_a_run_each_and_not_again(shortviz, checkpoint, tmp_path):
    folder = tmp_path / "runs"
    code, out, err = shortviz("sensitivity", checkpoint, *TEXTS, *SIZE, "--out", str(folder))
    assert code == 0, err
    assert "A: built-in passages/prose" in out
    assert "A to B: The best start" in out
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["passages-code", "passages-prose"]
    assert [p.name for p in (folder / "passages-code").iterdir()] == ["run.json"]
    code, again, err = shortviz("sensitivity", checkpoint, *TEXTS, *SIZE, "--out", str(folder))
    assert (code, again) == (0, out)
    assert "measure passages" not in err, "nothing is measured twice"
    code, compared, _ = shortviz("compare", *(str(folder / name) for name in reversed(names)))
    assert (code, compared) == (0, out)


def test_a_comparison_as_json_has_a_grid_of_differences_for_each_other_run(shortviz, checkpoint, tmp_path):
    folder = tmp_path / "runs"
    options = (*TEXTS, *SIZE, "--out", str(folder), "--criterion", "block_influence", "--json")
    code, out, err = shortviz("sensitivity", checkpoint, *options)
    assert code == 0, err
    found = json.loads(out)
    assert found["criterion"] == "block_influence"
    assert [len(row) for row in found["difference"][0]["mean"]] == list(range(NUM_LAYERS, 0, -1))
    assert len(found["runs"]) == 2
    assert {len(run["rows_needed"]) for run in found["runs"]} == {NUM_LAYERS - 1}
    one, other = (
        load_run(folder / name).distances.criteria["block_influence"] for name in ("passages-prose", "passages-code")
    )
    assert found["difference"][0]["mean"][1][2] == pytest.approx(other.mean[1, 2] - one.mean[1, 2])
    assert [shift["n"] for shift in found["shifts"][0]] == list(range(1, NUM_LAYERS))


def test_show_tells_how_many_rows_a_choice_needs(shortviz, checkpoint, tmp_path):
    run = str(tmp_path / "run")
    assert shortviz("measure", checkpoint, *SIZE, "--out", run)[0] == 0
    assert "rows needed" in shortviz("show", run)[1]


def test_a_folder_that_holds_a_measured_map_keeps_it(shortviz, checkpoint, tmp_path):
    folder = tmp_path / "runs"
    windows = ("--builtin", "passages/prose", "--window", "24", "--windows", "2")
    assert shortviz("map", checkpoint, *windows, "--out", str(folder / "passages-code"))[0] == 0
    code, _, err = shortviz("sensitivity", checkpoint, *TEXTS, *SIZE, "--out", str(folder))
    assert code == 0, err
    kept = load_run(folder / "passages-code")
    assert kept.losses is not None
    assert kept.distances is not None


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("sensitivity", "CHECKPOINT", "--builtin", "passages", "--out", "OUT"), "1 texts were named; give --text or"),
        (("sensitivity", "CHECKPOINT", "--text", "no.txt", "--builtin", "passages", "--out", "OUT"), "no.txt"),
        (
            ("sensitivity", "CHECKPOINT", *TEXTS, "--out", "OUT", "--criterion", "angel"),
            "no criterion 'angel' to compare",
        ),
        (("compare", "RUN"), "1 run was named; name at least two different ones"),
        (("compare", "RUN", "RUN"), "1 run was named; name at least two different ones"),
        (("compare", "RUN", "nowhere"), "There is no run in nowhere"),
        (
            ("compare", "RUN", "OTHER", "--criterion", "angel"),
            "Criterion 'angel' is not in all of the runs",
        ),
        (("compare", "RUN", "DEEPER"), "choose runs of one model"),
    ],
)
def test_bad_input_is_one_sentence(shortviz, checkpoint, tmp_path, runs_of_two_texts, command, message):
    places = {"CHECKPOINT": checkpoint, "OUT": str(tmp_path / "out")} | runs_of_two_texts
    code, out, err = shortviz(*(places.get(word, word) for word in command))
    assert (code, out) == (2, "")
    assert message in last_line(err)


def test_runs_of_different_models_are_told(shortviz, tmp_path, runs_of_two_texts):
    assert "different models" not in shortviz("compare", runs_of_two_texts["RUN"], runs_of_two_texts["OTHER"])[1]
    run = load_run(Path(runs_of_two_texts["RUN"]))
    save_run(replace(run, model=replace(run.model, id="tuned")), tmp_path)
    code, out, _ = shortviz("compare", runs_of_two_texts["RUN"], str(tmp_path))
    assert code == 0
    assert "different models (demo, tuned)" in out


@pytest.fixture(scope="module")
def runs_of_two_texts(tmp_path_factory):
    from tests.support.records import fixture_run

    folder = tmp_path_factory.mktemp("runs")
    for name, run in {"RUN": fixture_run(6), "OTHER": fixture_run(6, seed=1), "DEEPER": fixture_run(8)}.items():
        save_run(run, folder / name)
    return {name: str(folder / name) for name in ("RUN", "OTHER", "DEEPER")}
