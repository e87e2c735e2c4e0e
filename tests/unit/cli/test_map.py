"""`shortviz map` and `shortviz curve` on a tiny checkpoint."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from shortviz.measure import loss_map, search
from shortviz.progress import Watch
from shortviz.runs.run import load_run, save_run
from tests.support.command import last_line
from tests.support.families import NUM_LAYERS

TEXT = ("--builtin", "passages/prose", "--window", "24", "--windows", "3")
BLOCKS = NUM_LAYERS * (NUM_LAYERS + 1) // 2 - 1


def test_map_measures_every_block_and_adds_it_to_a_run(shortviz, checkpoint, tmp_path):
    run = str(tmp_path / "run")
    assert shortviz("measure", checkpoint, "--limit", "4", "--max-length", "16", "--out", run)[0] == 0
    code, out, err = shortviz("map", run, *TEXT)
    assert code == 0, err
    assert "Best block of each size by measured NLL" in out
    assert "How well each criterion predicts" in out
    saved = load_run(tmp_path / "run")
    assert saved.distances is not None
    assert int(np.isfinite(saved.losses.increase.mean).sum()) == BLOCKS
    assert saved.losses.tokens.max() == 3 * 23
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["run.json"]
    shown = shortviz("show", run)[1]
    assert "Best block of each size by measured NLL" in shown
    assert "How well each criterion predicts" in shown


def test_map_prints_the_run_as_one_json_object(shortviz, checkpoint):
    code, out, _ = shortviz("map", checkpoint, *TEXT, "--json")
    found = json.loads(out)["losses"]
    assert code == 0
    assert {"samples", "mean", "stderr"} == found["nll"].keys()
    assert found["kl"]["mean"][0][0] >= 0
    assert math.isfinite(found["base"]["nll"])


def test_a_map_first_and_distances_later_share_a_run(shortviz, checkpoint, tmp_path):
    run = str(tmp_path / "run")
    assert shortviz("map", checkpoint, *TEXT, "--out", run)[0] == 0
    code, _, err = shortviz("measure", checkpoint, "--limit", "4", "--max-length", "16", "--out", run)
    assert code == 0, err
    assert load_run(tmp_path / "run").losses is not None


def test_search_finds_the_best_start_of_the_whole_map_or_a_tie(shortviz, checkpoint):
    whole = json.loads(shortviz("map", checkpoint, *TEXT, "--json")[1])["losses"]["increase"]["mean"]
    code, out, err = shortviz("map", checkpoint, *TEXT, "--search", "--max-n", "3", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["n"] for row in found["rows"]] == [1, 2, 3]
    for row in found["rows"]:
        assert int(np.argmin(whole[row["n"] - 1])) in row["tied"]
    assert found["cells_measured"] <= found["cells_exhaustive"]
    assert "Best start of each size" in shortviz("map", checkpoint, *TEXT, "--search", "--max-n", "2")[1]


def test_the_calibration_text_as_evaluation_text_is_warned_about(shortviz, checkpoint, tmp_path):
    run = str(tmp_path / "run")
    same = ("--builtin", "passages/prose")
    assert shortviz("measure", checkpoint, *same, "--max-length", "16", "--out", run)[0] == 0
    _, _, err = shortviz("map", run, *same, "--window", "24", "--windows", "1")
    assert err.count("Warning: the losses are scored on the calibration text") == 1
    assert "one window gives no error bars" in err


def test_the_curve_has_a_column_for_each_strategy_and_reuses_the_map(shortviz, checkpoint, tmp_path):
    run = str(tmp_path / "run")
    assert shortviz("measure", checkpoint, "--limit", "4", "--max-length", "16", "--out", run)[0] == 0
    assert shortviz("map", run, *TEXT)[0] == 0
    code, out, err = shortviz("curve", run, "--json")
    assert code == 0, err
    assert "map:" not in err, "nothing is measured again"
    lines = {line["strategy"]: line for line in json.loads(out)["lines"]}
    assert {"best measured", "simple", "random", "angular_last"} <= set(lines)
    assert [p["n"] for p in lines["simple"]["points"]] == list(range(NUM_LAYERS))
    code, out, _ = shortviz("curve", run, *TEXT, "--greedy", "2")
    assert code == 0
    assert "built-in passages/prose; at most 3 windows of 24 tokens." in out
    assert "greedy" in out


def test_a_curve_cut_short_says_so_and_goes_on_from_its_checkpoint(shortviz, checkpoint, tmp_path, monkeypatch):
    run, measure = tmp_path / "run", loss_map.measure_losses

    def cut_short(handle, windows, *, watch, **options):
        def stop_at_once(progress):
            watch.report(progress)
            if progress.snapshot is not None:  # a group of cells is done
                watch.stop.set()

        return measure(handle, windows, watch=Watch(stop_at_once, watch.stop), **options)

    monkeypatch.setattr(loss_map, "CHECKPOINT_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(loss_map, "measure_losses", cut_short)
        code, _, err = shortviz("curve", checkpoint, *TEXT, "--out", str(run))
    assert code == 130
    assert "run the same command again to go on" in last_line(err)
    assert not load_run(run).losses.complete
    code, _, err = shortviz("curve", str(run))
    assert code == 2, "a map of the usual text in place of what there is"
    assert "the text asked for is built-in passages, " in last_line(err)
    code, _, err = shortviz("curve", checkpoint, *TEXT, "--out", str(run))
    assert code == 0, err
    assert load_run(run).losses.complete
    assert [p.name for p in run.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metric", "loss"), "--metric is 'loss'; it must be nll or kl."),
        (("--max-n", "3"), "--max-n belongs to --search"),
        (("--search", "--out", "OUT"), "--out keeps whole maps"),
        (("--search", "--max-n", "6"), "The largest n to search is 6; it must be 1 to 5."),
        (("--window", "100000"), "fewer than one window"),
    ],
)
def test_bad_options_of_map_are_one_sentence(shortviz, checkpoint, options, message):
    code, out, err = shortviz("map", checkpoint, *TEXT, *options)
    assert code == 2
    assert out == ""
    assert message in last_line(err)


def test_cuts_to_score_without_questions_are_refused(shortviz, checkpoint):
    code, out, err = shortviz("curve", checkpoint, *TEXT, "--sizes", "1,2")
    assert (code, out) == (2, "")
    assert "say which cuts --tasks scores" in last_line(err)


def test_greedy_on_other_text_than_the_map_is_refused(shortviz, checkpoint, tmp_path):
    run = str(tmp_path / "run")
    assert shortviz("map", checkpoint, *TEXT, "--out", run)[0] == 0
    code, _, err = shortviz("curve", run, "--builtin", "passages/code", "--window", "24", "--greedy", "1")
    assert code == 2
    assert "give the map's own, or another folder to write to" in last_line(err)


def test_a_complete_map_is_not_replaced_by_one_on_other_text(shortviz, checkpoint, tmp_path):
    run = str(tmp_path / "run")
    assert shortviz("map", checkpoint, *TEXT, "--out", run)[0] == 0
    code, _, err = shortviz("map", run, "--builtin", "passages/code", "--window", "24", "--windows", "2")
    assert code == 2
    assert "holds a complete map on built-in passages/prose" in last_line(err)
    assert load_run(tmp_path / "run").losses.text.source == "built-in passages/prose"


def test_distances_measured_later_leave_everything_else_of_a_run_as_it_is(shortviz, checkpoint, tmp_path):
    run = tmp_path / "run"
    assert shortviz("curve", checkpoint, *TEXT, "--greedy", "2", "--out", str(run))[0] == 0
    save_run(replace(load_run(run), name="mine"), run)
    size = ("--limit", "4", "--max-length", "16")
    for _ in range(2):
        assert shortviz("measure", checkpoint, *size, "--criteria", "angular_last", "--out", str(run))[0] == 0
        kept = load_run(run)
        assert kept.distances is not None
        assert kept.losses is not None
        assert kept.greedy is not None
        assert kept.name == "mine"


def test_a_shorter_greedy_removal_does_not_take_the_place_of_a_longer_one(shortviz, checkpoint, tmp_path, monkeypatch):
    run, measure = tmp_path / "run", search.greedy_removal
    assert shortviz("curve", checkpoint, *TEXT, "--greedy", "2", "--out", str(run))[0] == 0

    def cut_short(handle, windows, *, watch, **options):
        watch.stop.set()
        return replace(measure(handle, windows, max_removed=1), complete=False)

    monkeypatch.setattr(search, "greedy_removal", cut_short)
    assert shortviz("curve", str(run), *TEXT, "--greedy", "3")[0] == 130
    assert len(load_run(run).greedy.line.points) == 3
