"""Runs of schema 1, as shortviz wrote them until November 2026, open with every value in its place."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shortviz.errors import RunError
from shortviz.records.ledger import Ledger, LedgerStep, Treatment
from shortviz.records.measured import (
    BlockDistances,
    BlockLosses,
    BoundaryNorms,
    CurveLine,
    CurvePoint,
    Evaluation,
    GreedyRemoval,
    Grid,
    RowsNeeded,
    Score,
)
from shortviz.records.model import ModelInfo
from shortviz.records.run import Run
from shortviz.records.text import TaskScore, TextInfo
from shortviz.runs.run import load_run, parse_run, save_run
from shortviz.runs.zip import unpack_run
from tests.support.paths import ROOT
from tests.support.records import assert_same

OLD = ROOT / "tests" / "data" / "run_schema_1.json"
LAYERS = 4
LEAST = {"distances": None, "losses": None, "evaluations": (), "ledgers": (), "greedy": None, "tasks": ()}


def grid(scale: float, *, last: bool = True) -> Grid:
    n, start = np.indices((LAYERS, LAYERS))
    mean = np.where((n + start < LAYERS) & (last | (n < LAYERS - 1)), scale * (n + 1 + start / 8), np.nan)
    return Grid(mean=mean, stderr=mean / 16, samples=8)


def text(source: str) -> TextInfo:
    return TextInfo(source=source, rows=8, tokens=2048, fingerprint=source * 8, max_length=256, options="--limit 8")


def score(nll: float, windows: int = 3) -> Score:
    return Score(
        nll=nll,
        nll_stderr=0.125 if windows > 1 else math.nan,
        tokens=255 * windows,
        windows=windows,
        forward_seconds=0.25,
        parameters=1000,
        bytes=4000,
        cache_bytes_per_token=64,
        window_nll=tuple(nll + w / 4 for w in range(windows)),
    )


def task(accuracy: float, removed: tuple[int, ...] = ()) -> TaskScore:
    return TaskScore(
        accuracy=accuracy,
        accuracy_stderr=0.1,
        accuracy_norm=accuracy,
        accuracy_norm_stderr=math.nan,
        questions=2,
        chance=0.5,
        majority=0.5,
        source="file q.jsonl",
        fingerprint="q",
        removed=removed,
        right="01",
    )


def the_run() -> Run:
    uncut = Evaluation(score=score(3.0), text=text("eval"))
    cut = Evaluation(
        score=score(3.5),
        text=text("eval"),
        removed=(1, 2),
        base=score(3.0),
        nll_increase=0.5,
        nll_increase_stderr=0.0625,
        kl=0.4,
        kl_stderr=0.1,
        same_top1=0.7,
        same_top1_stderr=0.02,
    )
    one_window = replace(
        cut, removed=(1,), score=score(3.25, 1), base=score(3.0, 1), nll_increase_stderr=math.nan, kl_stderr=math.nan
    )
    repair = Treatment(
        kind="repair", method="seam_refit", settings={"ridge": 0.5, "rows": 8, "ok": True, "on": None}, text=text("fit")
    )
    steps = (
        LedgerStep(name="uncut", evaluation=uncut, task=task(1.0), continuation=" Paris"),
        LedgerStep(name="cut", evaluation=cut),
        LedgerStep(name="repaired", evaluation=cut, treatments=(repair,), recovered=0.25, recovered_stderr=math.nan),
    )
    points = (
        CurvePoint(n=0, removed=(), nll=3.0, stderr=0.0),
        CurvePoint(n=1, removed=(2,), nll=3.125, stderr=math.nan),
    )
    return Run(
        model=ModelInfo(
            id="org/tiny",
            revision="abc",
            architecture="LlamaForCausalLM",
            num_layers=LAYERS,
            parameters=1000,
            dtype="float32",
            device="cpu",
            reason="float32 on the CPU.",
            bytes=4000,
            hidden_size=8,
            vocab_size=16,
            context_length=None,
            layer_parameters=(200,) * LAYERS,
            layer_bytes=(800,) * LAYERS,
            layer_cache_bytes=(16,) * LAYERS,
            illegal=((0, 1, "layer_types"),),
        ),
        text=text("measured"),
        distances=BlockDistances(
            num_layers=LAYERS,
            criteria={"angular_last": grid(1.0), "block_influence": grid(1 / 3)},
            norms=BoundaryNorms(first=np.arange(5) / 3, rest=np.arange(5.0)),
            text=text("measured"),
            seconds=1.5,
            rows=8,
            settling={
                "angular_last": RowsNeeded(
                    rows=8, orders=20, counts=(4, 8), agree=np.array([[0.5, 0.75, 1], [1, 1, 1]]), needed=(8, 4, 4)
                )
            },
            tokens_per_row=16,
        ),
        losses=BlockLosses(
            num_layers=LAYERS,
            base=score(3.0),
            nll=grid(1.0, last=False),
            increase=grid(0.1, last=False),
            kl=grid(0.2, last=False),
            windows=np.array([[3, 3, 3, 2], [3, 3, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]),
            tokens=np.array([[765, 765, 765, 510], [765, 765, 0, 0], [255, 0, 0, 0], [0, 0, 0, 0]]),
            text=text("eval"),
            complete=False,
            seconds=2.5,
        ),
        evaluations=(cut, one_window),
        ledgers=(Ledger(removed=(1, 2), text=text("eval"), steps=steps, prompt="The capital"),),
        greedy=GreedyRemoval(
            line=CurveLine(strategy="greedy", label="greedy layers", points=points), text=text("eval"), complete=False
        ),
        tasks=(task(1.0), task(0.5, (1, 2))),
        versions={"shortviz": "0.1.0"},
        created="2026-11-22T12:00:00+00:00",
        name="old",
    )


def test_a_run_of_schema_1_opens_with_every_value_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(OLD.read_bytes())
    run, expected = load_run(tmp_path), the_run()
    whole, older = expected.evaluations
    assert_same(run, replace(expected, evaluations=(whole, replace(older, same_top1_stderr=math.nan))))
    save_run(run, tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["schema"] == 2
    assert_same(load_run(tmp_path), run)


def test_the_least_run_of_schema_1_opens() -> None:
    old = json.loads(OLD.read_text())
    least = {key: old[key] for key in ("schema", "name", "created", "model", "text", "versions")} | {"evaluations": []}
    assert_same(parse_run(json.dumps(least), "x"), replace(the_run(), **LEAST))


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("evaluations", 0, "nll"), None, "evaluations.0.score.nll"),
        (("evaluations", 0, "base"), 7, "is not a run"),
        (("evaluations", 0, "kl"), 10**400, "400 digits|401 digits"),
        (("evaluations",), 7, "is not a run"),
        (("evaluations",), [7], "is not a run"),
        (("ledgers", 0, "steps", 0, "name"), "else", "ledgers.0.steps.0.name"),
        (("ledgers", 0, "steps", 0, "treatments"), 7, "ledgers.0.steps.0.treatments"),
        (("ledgers", 0, "removed", 0), -1, "not there"),
        (("ledgers",), 7, "is not a run"),
        (("losses", "text", "rows"), "x", "losses.text.rows"),
        (("losses", "windows", 0, 0), 2**63, "whole number"),
        (("losses", "windows", 0, 0), 1.5, "losses.windows"),
        (("losses", "nll"), [], "is not a run"),
        (("losses",), [1], "is not a run"),
        (("distances",), [1], "distances.criteria"),
        (("distances", "angular_last", "mean"), [[1.0]], "it is of 1 layers, and the model has 4"),
        (("norms", "first"), [1.0], "distances.norms.first"),
        (("model", "num_layers"), 5, "differ|has 5"),
        (("tasks", 0, "removed"), "12", "tasks.0.removed"),
        (("versions",), "x", "versions"),
    ],
)
def test_an_old_run_of_wrong_values_is_refused_in_a_sentence(path: tuple[Any, ...], value: Any, why: str) -> None:
    found = inner = json.loads(OLD.read_text())
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(RunError, match=f"^The file .*({why})") as error:
        unpack_run(json.dumps(found).encode(), "The file")
    assert "\n" not in str(error.value)
    assert "Error" not in str(error.value)
