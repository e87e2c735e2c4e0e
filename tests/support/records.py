"""Seeded records by formula, shaped like a real measurement: for tests of what is drawn and shown, never of numbers."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from shortviz.records.measured import BlockDistances, BoundaryNorms, Evaluation, Grid, Score
from shortviz.records.model import ModelInfo
from shortviz.records.plan import Block
from shortviz.records.run import Run
from shortviz.records.text import TextInfo

CRITERIA = ("angular_last", "angular_mean", "block_influence", "euclidean_last", "relative_magnitude")
_LIMITS = {"angular_last": 1.0, "angular_mean": 1.0, "block_influence": 2.0}
_SCALE = {
    "angular_last": 0.5,
    "angular_mean": 0.45,
    "block_influence": 0.9,
    "euclidean_last": 150.0,
    "relative_magnitude": 1.5,
}


def fixture_grid(num_layers: int, *, seed: int = 0, scale: float = 0.5, samples: int = 64, limit: float = 1e9) -> Grid:
    """Cells grow with n, are lowest at three quarters of the depth, and carry seeded noise below 5 %."""
    draw = np.random.default_rng([seed, num_layers])
    n = np.arange(1, num_layers + 1)[:, None]
    start = np.arange(num_layers)[None, :]
    middle = (start + n / 2) / num_layers
    mean = scale * (n / num_layers) ** 0.7 * (0.5 + (middle - 0.75) ** 2 * 2)
    mean = np.minimum(mean * draw.uniform(0.95, 1.05, mean.shape), limit)
    stderr = mean * draw.uniform(0.005, 0.03, mean.shape) if samples > 1 else np.full_like(mean, np.nan)
    outside = start + n > num_layers
    mean[outside] = np.nan
    stderr[outside] = np.nan
    return Grid(mean=mean, stderr=stderr, samples=samples)


def fixture_norms(num_layers: int, *, sink: int | None = None) -> BoundaryNorms:
    """Norms that grow slowly; position 0 jumps in layer `sink` (default: a third of the depth)."""
    sink = num_layers // 3 if sink is None else sink
    rest = 20.0 + 180.0 * np.arange(num_layers + 1) / num_layers
    first = rest * 0.9
    first[sink + 1 :] = 25_000.0
    return BoundaryNorms(first=first, rest=rest)


def fixture_text(rows: int = 64) -> TextInfo:
    return TextInfo(
        source="built-in python-reference",
        rows=rows,
        tokens=rows * 256,
        fingerprint="f" * 64,
        bos="auto: no BOS",
        max_length=256,
    )


def fixture_distances(num_layers: int = 30, *, samples: int = 64, seed: int = 0) -> BlockDistances:
    grids = {
        name: fixture_grid(
            num_layers, seed=seed + k, scale=_SCALE[name], samples=samples, limit=_LIMITS.get(name, np.inf)
        )
        for k, name in enumerate(CRITERIA)
    }
    return BlockDistances(
        num_layers=num_layers,
        criteria=grids,
        norms=fixture_norms(num_layers),
        text=fixture_text(samples),
        seconds=samples / 20,
    )


def fixture_model(num_layers: int = 30, *, illegal: tuple[tuple[int, int, str], ...] = ()) -> ModelInfo:
    layer = 3_540_096
    rest = 28_312_704
    return ModelInfo(
        id="demo",
        revision=None,
        architecture="LlamaForCausalLM",
        num_layers=num_layers,
        parameters=rest + layer * num_layers,
        dtype="float32",
        device="cpu",
        reason="float32 because the device is a CPU.",
        bytes=4 * (rest + layer * num_layers),
        hidden_size=576,
        vocab_size=49_152,
        context_length=8192,
        layer_parameters=(layer,) * num_layers,
        layer_bytes=(4 * layer,) * num_layers,
        layer_cache_bytes=(1536,) * num_layers,
        illegal=illegal,
    )


def fixture_score(model: ModelInfo, *, removed: tuple[int, ...] = (), nll: float = 3.58) -> Score:
    return Score(
        nll=nll,
        nll_stderr=0.02,
        tokens=8176,
        windows=16,
        forward_seconds=0.4 * (1 - len(removed) / model.num_layers),
        parameters=model.parameters - sum(model.layer_parameters[i] for i in removed),
        bytes=model.bytes - sum(model.layer_bytes[i] for i in removed),
        cache_bytes_per_token=sum(c for i, c in enumerate(model.layer_cache_bytes) if i not in removed),
    )


def fixture_evaluation(model: ModelInfo, block: Block) -> Evaluation:
    removed = block.layers
    return Evaluation(
        score=fixture_score(model, removed=removed, nll=4.23),
        text=fixture_text(16),
        removed=removed,
        base=fixture_score(model),
        nll_increase=0.65,
        nll_increase_stderr=0.03,
        kl=0.58,
        kl_stderr=0.02,
        same_top1=0.61,
        same_top1_stderr=0.015,
    )


def fixture_run(num_layers: int = 30, *, samples: int = 64, seed: int = 0) -> Run:
    model = fixture_model(num_layers)
    return Run(
        model=model,
        text=fixture_text(samples),
        distances=fixture_distances(num_layers, samples=samples, seed=seed),
        evaluations=(fixture_evaluation(model, Block(start=num_layers // 2, n=max(1, num_layers // 8))),),
        versions={"shortviz": "0.1.0"},
        created="2026-11-22T12:00:00+00:00",
        name="formula",
    )


def assert_same(found: Any, expected: Any, path: str = "run") -> None:
    """Field by field, types too; NaN is NaN."""
    assert type(found) is type(expected), path
    if is_dataclass(expected):
        for field in fields(expected):
            assert_same(getattr(found, field.name), getattr(expected, field.name), f"{path}.{field.name}")
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype, path
        np.testing.assert_array_equal(found, expected, err_msg=path)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key, value in expected.items():
            assert_same(found[key], value, f"{path}.{key}")
    elif isinstance(expected, tuple):
        assert len(found) == len(expected), path
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{path}.{i}")
    elif isinstance(expected, frozenset):  # equal ones may stand in another order
        assert_same(tuple(sorted(found)), tuple(sorted(expected)), path)
    else:
        assert repr(found) == repr(expected), path  # NaN is NaN, and -0.0 not 0.0
