"""The run directory: what is written, what comes back, what is refused."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from shortviz.cli.output import evaluation_text
from shortviz.errors import RunError
from shortviz.records.json import to_json
from shortviz.records.measured import evaluation_json
from shortviz.runs.run import folder_name, load_run, new_run, save_run, with_evaluation
from tests.support.maps import LAYERS, losses_of, triangle
from tests.support.paths import ROOT
from tests.support.records import fixture_run


def test_a_run_comes_back_as_it_was_saved(tmp_path):
    run = fixture_run(num_layers=6)
    save_run(run, tmp_path / "run")
    back = load_run(tmp_path / "run")
    assert (back.model, back.text, back.created, back.name) == (run.model, run.text, run.created, run.name)
    for name, grid in run.distances.criteria.items():
        np.testing.assert_array_equal(back.distances.criteria[name].mean, grid.mean)
        np.testing.assert_array_equal(back.distances.criteria[name].stderr, grid.stderr)
        assert back.distances.criteria[name].samples == grid.samples
    np.testing.assert_array_equal(back.distances.norms.first, run.distances.norms.first)
    assert back.evaluations == run.evaluations


def test_run_json_has_the_shape_of_the_design():
    found = json.loads(to_json(fixture_run(num_layers=6)))
    assert found["schema"] == 2
    assert {"id", "revision", "architecture", "num_layers", "parameters", "dtype"} <= found["model"].keys()
    assert {"source", "rows", "tokens", "fingerprint"} <= found["text"].keys()
    grid = found["distances"]["criteria"]["angular_last"]
    assert grid.keys() == {"samples", "mean", "stderr"}
    assert [len(row) for row in grid["mean"]] == [6, 5, 4, 3, 2, 1]
    assert "shortviz" in new_run(fixture_run(num_layers=6).model, fixture_run(num_layers=6).text).versions


def test_a_measured_map_comes_back_and_has_the_shape_of_the_design(tmp_path):
    run = fixture_run(num_layers=LAYERS)
    rng = np.random.default_rng(0).uniform(0.1, 3, (LAYERS, LAYERS))
    losses = losses_of(np.where(np.isnan(triangle()), np.nan, rng))
    save_run(replace(run, losses=losses), tmp_path)
    back = load_run(tmp_path).losses
    for name in ("nll", "increase", "kl"):
        np.testing.assert_array_equal(getattr(back, name).mean, getattr(losses, name).mean)
        np.testing.assert_array_equal(getattr(back, name).stderr, getattr(losses, name).stderr)
    np.testing.assert_array_equal(back.windows, losses.windows)
    np.testing.assert_array_equal(back.tokens, losses.tokens)
    assert (back.base, back.text, back.complete, back.replayed) == (losses.base, losses.text, True, True)
    found = json.loads((tmp_path / "run.json").read_text())["losses"]
    assert found.keys() >= {"base", "tokens", "nll", "increase", "kl"}
    assert found["nll"].keys() == {"samples", "mean", "stderr"}
    assert [len(row) for row in found["kl"]["mean"]] == [5, 4, 3, 2, 1]
    assert found["nll"]["mean"][4] == [None]


def test_evaluation_json_has_the_shape_of_the_design_and_no_nan():
    evaluation = fixture_run(num_layers=6).evaluations[0]
    one_window = replace(evaluation, score=replace(evaluation.score, nll_stderr=math.nan), nll_increase_stderr=math.nan)
    found = json.loads(json.dumps(evaluation_json(one_window), allow_nan=False))
    assert {"perplexity", "nll", "nll_stderr", "tokens", "windows", "base", "removed", "parameters", "bytes"} <= set(
        found
    )
    assert found["nll_stderr"] is None
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]))


def test_an_evaluation_of_before_there_was_an_error_of_the_same_next_token_is_read(tmp_path):
    shutil.copy(ROOT / "tests" / "data" / "run_schema_1.json", tmp_path / "run.json")
    known, old = load_run(tmp_path).evaluations
    assert old.same_top1 == 0.7
    assert math.isnan(old.same_top1_stderr)
    assert "same top token    70.0 %" in evaluation_text(old)
    assert "same top token    70.0 ± 2.0 %" in evaluation_text(known)


def test_an_evaluation_replaces_the_one_of_the_same_layers_and_text():
    run = fixture_run(num_layers=6)
    first = run.evaluations[0]
    more = replace(first, score=replace(first.score, tokens=first.score.tokens + 1))
    other = replace(first, removed=(0,))
    again = with_evaluation(with_evaluation(run, more), other)
    assert again.evaluation_of(first.removed) == more
    assert again.evaluation_of((0,)) == other
    assert again.evaluation_of((5,)) is None
    assert len(again.evaluations) == len(run.evaluations) + 1


def test_a_run_of_another_text_is_not_overwritten(tmp_path):
    run = fixture_run(num_layers=6)
    save_run(run, tmp_path)
    save_run(replace(run, name="again"), tmp_path)
    with pytest.raises(RunError, match="holds a run of .* choose another folder"):
        save_run(replace(run, text=replace(run.text, fingerprint="other")), tmp_path)
    assert load_run(tmp_path).name == "again"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a run of shortviz"),
        ("{}", r"is not a run of shortviz \(model: field required\)"),
        ('{"schema": 99}', "has schema 99, this version reads 2"),
        ("[1]", "is not a run"),
        ('{"schema": 1, "model": {"id": 3}}', r"is not a run of shortviz \(nor as schema 1 has it: 'num_layers'\)"),
        ('{"schema": 1, "model": []}', "is not a run"),
        ('{"schema": 2, "model": {"id": 3}}', r"\(model.id: input should be a valid string\)"),
        ("[" * 100_000, "is not a run"),
    ],
)
def test_broken_runs_are_refused_with_the_reason(tmp_path, text, message):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text(text)
    with pytest.raises(RunError, match=message):
        load_run(tmp_path / "broken")


def test_a_binary_file_is_no_run(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="not UTF-8"):
        load_run(tmp_path / "broken")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="There is no run in"):
        load_run(tmp_path / "nowhere")


def test_runs_are_named_safely(tmp_path):
    run = fixture_run(num_layers=6)
    odd = replace(run, model=replace(run.model, id="../../a b/c\u00e9"))
    assert "/" not in folder_name(odd)
    assert not folder_name(odd).startswith(".")
    save_run(odd, tmp_path / folder_name(odd))
    assert load_run(tmp_path / folder_name(odd)).model.id == "../../a b/c\u00e9"
