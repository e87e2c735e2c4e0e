"""Accuracy on the removal curve, greedy removal in a run, and that blocks without a config are on no line."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest

from shortviz.analysis.agreement import agreement
from shortviz.analysis.curve import (
    accuracy_lines,
    curve_from_map,
    curve_of_run,
    default_sizes,
    plans_to_score,
    strategies_of,
)
from shortviz.errors import PlanError, Stopped
from shortviz.figures.losses import accuracy_alt, accuracy_figure
from shortviz.measure import loss_map
from shortviz.measure.search import greedy_removal
from shortviz.measure.tasks import score_plans, score_tasks
from shortviz.model.prune import prune
from shortviz.progress import Watch
from shortviz.records.json import plain
from shortviz.records.measured import CurveLine, CurvePoint, GreedyRemoval
from shortviz.records.plan import PrunePlan
from shortviz.records.text import TaskRow, TaskRows, TaskScore, WindowSet
from shortviz.runs.run import parse_run, with_task
from tests.support.families import NUM_LAYERS, shared_handle, tiny_tokens
from tests.support.maps import LAYERS, distances_of, losses_of, triangle
from tests.support.records import fixture_model, fixture_run, fixture_text


def score(removed: tuple[int, ...], accuracy: float = 0.5, fingerprint: str = "q") -> TaskScore:
    return TaskScore(
        accuracy=accuracy,
        accuracy_stderr=0.05,
        accuracy_norm=accuracy,
        accuracy_norm_stderr=0.05,
        questions=100,
        chance=0.25,
        majority=0.3,
        source="file q.jsonl",
        fingerprint=fingerprint,
        removed=removed,
    )


def rows(count: int = 6) -> TaskRows:
    found = tuple(TaskRow(where=f"row {i}", context=f"a{i} b", choices=("c d", "e"), label=i % 2) for i in range(count))
    return TaskRows(rows=found, source="file q.jsonl", fingerprint="q")


def windows(count: int = 2) -> WindowSet:
    return WindowSet(tokens=tiny_tokens(16, batch=count).numpy(), info=fixture_text(count))


def test_each_cut_is_scored_once_however_many_strategies_choose_it() -> None:
    curve = curve_from_map(losses_of(triangle()), distances_of(triangle()))
    assert "random" not in strategies_of(curve)
    plans = plans_to_score(curve, ("best measured", "angular_last"), (1, 2))
    assert plans[0] == ()
    assert [len(plan) for plan in plans] == [0, 1, 2], "the criterion is the measured loss itself here"
    with pytest.raises(PlanError, match="no strategy 'best'.*choose from best measured"):
        plans_to_score(curve, ("best",), (1,))
    with pytest.raises(PlanError, match=f"size {LAYERS} is outside 1-{LAYERS - 1}"):
        plans_to_score(curve, ("simple",), (LAYERS,))
    assert default_sizes(30) == (1, 4, 8, 11, 15)


def test_lines_take_the_scores_of_one_set_of_questions_and_are_drawn_with_chance_and_majority() -> None:
    curve = curve_from_map(losses_of(triangle()), distances_of(triangle()))
    best = {p.n: p.removed for p in curve.lines[0].points}
    scores = [score((), 0.6), score(best[1], 0.5), score(best[2], 0.4), score(best[3], 0.1, fingerprint="other")]
    (line, *_) = accuracy_lines(curve, scores, "q")
    assert (line.strategy, [n for n, _ in line.points]) == ("best measured", [0, 1, 2])
    figure = accuracy_figure(accuracy_lines(curve, scores, "q"))
    assert list(figure.data[0].y) == [60, 50, 40]
    assert list(figure.data[0].error_y.array) == [5, 5, 5]
    assert {shape.y0 for shape in figure.layout.shapes} == {25, 30}
    assert "100 questions" in accuracy_alt(accuracy_lines(curve, scores, "q"))
    assert accuracy_lines(curve, scores, "nothing") == ()


def test_scores_of_cuts_equal_those_of_pruned_models_and_a_stop_keeps_the_whole_ones() -> None:
    handle = shared_handle("llama")
    plans, kept, stop = [(), (1, 2), (0,)], [], threading.Event()

    def keep(found: TaskScore) -> None:
        kept.append(found)
        if len(kept) == 2:
            stop.set()

    found = score_plans(handle, rows(), plans, on_score=keep, watch=Watch(stop=stop))
    assert [one.removed for one in found] == [(), (1, 2)]
    cut = score_tasks(prune(handle, PrunePlan(num_layers=NUM_LAYERS, removed=(1, 2))), rows())
    assert [p.log_likelihoods for p in found[1].predictions] == [p.log_likelihoods for p in cut.predictions]
    with pytest.raises(Stopped, match="no result yet"):
        score_plans(handle, rows(), plans, watch=Watch(stop=stop))


def test_a_run_keeps_accuracies_and_greedy_removal_and_older_runs_open() -> None:
    run = with_task(with_task(fixture_run(LAYERS), score((1,), 0.1)), score((1,), 0.2))
    points = (CurvePoint(n=0, removed=(), nll=3.0, stderr=0.0), CurvePoint(n=1, removed=(2,), nll=3.1, stderr=np.nan))
    line = CurveLine(strategy="greedy", label="greedy scattered layers", points=points)
    run = replace(
        run,
        greedy=GreedyRemoval(line=line, text=replace(fixture_text(4), fingerprint="other")),
        losses=losses_of(triangle()),
    )
    content = plain(run)
    back = parse_run(json.dumps(content), "here")
    assert back.task_of((1,), "q").accuracy == 0.2
    assert len(back.tasks) == 1
    assert back.greedy.line.points[1].removed == (2,)
    assert np.isnan(back.greedy.line.points[1].stderr)
    assert "greedy" not in [one.strategy for one in curve_of_run(back).lines], "measured on other windows than the map"
    same = replace(back, greedy=replace(back.greedy, text=back.losses.text))
    assert "greedy" in [one.strategy for one in curve_of_run(same).lines]
    del content["greedy"], content["tasks"]
    assert parse_run(json.dumps(content), "here").tasks == ()


def test_blocks_that_cannot_be_exported_are_on_no_line_and_in_no_correlation() -> None:
    illegal = tuple((s, 2, "layer_types") for s in range(LAYERS - 1))
    model = fixture_model(LAYERS, illegal=(*illegal, (LAYERS - 2, 1, "layer_types")))
    curve = curve_from_map(losses_of(triangle()), distances_of(triangle(1)), model)
    for line in curve.lines:
        assert 2 not in [p.n for p in line.points], line.strategy
        assert all(p.removed != (LAYERS - 2,) for p in line.points)
    (found, *_) = agreement(distances_of(triangle(1)), losses_of(triangle()), model)
    assert np.isnan(found.spearman_rows[1])


def test_greedy_removal_checks_replay_once_and_gives_what_single_checks_give(monkeypatch) -> None:
    handle, checks = shared_handle("llama"), []
    agrees = loss_map._agrees
    monkeypatch.setattr(loss_map, "_agrees", lambda *a: checks.append(1) or agrees(*a))
    seen: list[int] = []
    found = greedy_removal(
        handle, windows(), max_removed=3, watch=Watch(lambda p: seen.append(len(p.snapshot().line.points)))
    )
    assert len(checks) == 1
    assert seen == [2, 3, 4]
    assert found.complete
    open_engine = loss_map.open_engine
    monkeypatch.setattr("shortviz.measure.search.open_engine", lambda handle, tokens, like: open_engine(handle, tokens))
    assert greedy_removal(handle, windows(), max_removed=3).line == found.line
