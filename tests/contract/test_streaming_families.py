"""Every family, streamed from its files: the numbers are those of the pass in memory, the export has the same bytes."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shortviz.errors import PlanError
from shortviz.export.export import write_checkpoint
from shortviz.export.folder import fingerprints
from shortviz.measure.distances import measure_distances
from shortviz.measure.losses import evaluate
from shortviz.model.layers import widest
from shortviz.model.load import load
from shortviz.model.prune import prune
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TextInfo, WindowSet
from shortviz.streaming import proof
from shortviz.streaming.distances import measure_streamed
from shortviz.streaming.export import export_streamed
from shortviz.streaming.losses import evaluate_streamed
from shortviz.streaming.model import estimate_streaming, open_streamed
from tests.support.families import FAMILIES, plan_for, shared_handle
from tests.support.streams import LENGTHS, rows


@pytest.fixture(params=FAMILIES, scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    handle, folder = shared_handle(request.param), tmp_path_factory.mktemp(request.param)
    handle.model.save_pretrained(folder)
    handle.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_is_what_streaming_then_takes(folder: Path, dtype: str) -> None:
    ref = ModelRef(id=str(folder), dtype=dtype)
    found = estimate_streaming(ref, rows=3, row_tokens=8)
    with open_streamed(ref) as model:
        states = (model.info.num_layers + 1) * 3 * 8 * model.info.hidden_size * widest(model.state_dtypes).itemsize
        expected = (model.working_bytes, states, model.info.bytes)
    assert (found.streamed_memory_bytes, found.states_bytes, found.disk_bytes) == expected


@pytest.mark.parametrize(("lengths", "batch_size"), [(LENGTHS, 3), ((11,) * 7, 2)], ids=["mixed", "fused"])
def test_streamed_distances_equal_those_of_the_loaded_model_bit_for_bit(
    folder: Path, lengths: tuple[int, ...], batch_size: int
) -> None:
    ref, tokens = ModelRef(id=str(folder)), rows(lengths)
    handle = load(ref)
    expected = measure_distances(handle, tokens, batch_size=batch_size)
    with open_streamed(ref) as streamed:
        assert replace(streamed.info, reason="") == replace(handle.info, reason="")
        found = measure_streamed(streamed, tokens, batch_size=batch_size)
        assert all(p.is_meta for p in streamed.model.parameters()), "no weight stays in memory"
    for name, grid in expected.criteria.items():
        np.testing.assert_array_equal(found.criteria[name].mean, grid.mean, err_msg=name)
        np.testing.assert_array_equal(found.criteria[name].stderr, grid.stderr, err_msg=name)
    np.testing.assert_array_equal(found.norms.first, expected.norms.first)


def test_streamed_losses_of_cuts_are_those_of_the_cut_models_in_memory(folder: Path) -> None:
    ref = ModelRef(id=str(folder))
    handle = load(ref)
    layers = handle.info.num_layers
    wanted = [Block(start=0, n=1), Block(start=layers // 2, n=2), Block(start=layers - 1, n=1)]
    plans = [plan_for(handle)]
    for block in wanted:
        with suppress(PlanError):
            plans.append(prune(handle, PrunePlan.of_blocks(layers, block)).plan)
    tokens = np.stack([row for row in rows((20, 20)).rows])
    windows = WindowSet(tokens=tokens, info=TextInfo(source="random", rows=2, tokens=40, fingerprint="w"))
    with open_streamed(ref) as streamed:
        found = evaluate_streamed(streamed, windows, plans)
        alone = evaluate_streamed(streamed, windows, [])
        assert all(p.is_meta for p in streamed.model.parameters()), "no weight stays in memory"
    assert len(found) == len(plans) >= 2
    for plan, one in zip(plans, found, strict=True):
        expected = evaluate(prune(handle, plan), windows, base=handle)
        for name in ("nll_increase", "nll_increase_stderr", "kl", "kl_stderr", "same_top1", "same_top1_stderr"):
            assert getattr(one, name) == pytest.approx(getattr(expected, name), abs=1e-6), name
        for mine, theirs in ((one.score, expected.score), (one.base, expected.base), (alone[0].score, expected.base)):
            assert mine.window_nll == pytest.approx(theirs.window_nll, abs=1e-6)
            assert (mine.parameters, mine.bytes, mine.tokens) == (theirs.parameters, theirs.bytes, theirs.tokens)
            assert mine.cache_bytes_per_token == theirs.cache_bytes_per_token
        assert one.removed == expected.removed


def test_a_streamed_export_has_the_bytes_of_the_one_in_memory_and_computes_what_bypassing_computes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = load(ModelRef(id=str(folder), dtype="float32"))  # on a GPU too: the streamed export keeps what is in files
    plan = plan_for(handle)
    write_checkpoint(prune(handle, plan), tmp_path / "in-memory")
    monkeypatch.setattr(proof, "free_memory", lambda _: 0)  # the short model does not fit: stream the proof
    report = export_streamed(ModelRef(id=str(folder)), lambda _: plan, tmp_path / "streamed")
    expected = fingerprints(tmp_path / "in-memory")
    assert {name: report.files[name] for name in expected} == expected, "weights, configs and tokenizer"
    assert dict(report.files) == fingerprints(tmp_path / "streamed")
    assert (report.proof, report.max_logit_diff, report.generation_equal) == ("streamed", 0.0, None)
