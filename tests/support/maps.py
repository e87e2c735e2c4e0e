"""Maps of distances and of losses by formula, and what makes two of them equal."""

import numpy as np

from shortviz.records.measured import BlockDistances, BlockLosses, Grid
from shortviz.records.text import TextInfo, WindowSet
from tests.support.families import tiny_tokens
from tests.support.records import fixture_model, fixture_norms, fixture_score, fixture_text

LAYERS = 5


def grid(mean: np.ndarray, samples: int = 4) -> Grid:
    return Grid(mean=mean, stderr=np.where(np.isnan(mean), np.nan, 0.1), samples=samples)


def triangle(seed: int = 0) -> np.ndarray:
    n, start = np.indices((LAYERS, LAYERS))
    values = (n + 1) + np.random.default_rng(seed).uniform(0, 0.9, (LAYERS, LAYERS))
    return np.where(start + n + 1 > LAYERS, np.nan, values)


def losses_of(increase: np.ndarray) -> BlockLosses:
    whole = increase.copy()
    whole[LAYERS - 1] = np.nan
    windows = np.where(np.isnan(whole), 0, 4).astype(np.int64)
    base = fixture_score(fixture_model(LAYERS), nll=3.0)
    return BlockLosses(
        num_layers=LAYERS,
        base=base,
        nll=grid(whole + 3.0),
        increase=grid(whole),
        kl=grid(whole),
        windows=windows,
        tokens=windows * 127,
        text=fixture_text(),
    )


def distances_of(mean: np.ndarray) -> BlockDistances:
    return BlockDistances(
        num_layers=LAYERS,
        criteria={"angular_last": grid(mean), "unmeasured": grid(np.full_like(mean, np.nan), samples=0)},
        norms=fixture_norms(LAYERS),
        text=fixture_text(),
    )


def map_windows(count: int = 3, length: int = 40, seed: int = 1) -> WindowSet:
    tokens = tiny_tokens(length, count, seed).numpy()
    info = TextInfo(source="random", rows=count, tokens=tokens.size, fingerprint=f"{seed}-{count}-{length}")
    return WindowSet(tokens=tokens, info=info)


def assert_same(a: BlockLosses, b: BlockLosses) -> None:
    """Bit for bit, but for the seconds."""
    for name in ("nll", "increase", "kl"):
        np.testing.assert_array_equal(getattr(a, name).mean, getattr(b, name).mean)
        np.testing.assert_array_equal(getattr(a, name).stderr, getattr(b, name).stderr)
    np.testing.assert_array_equal(a.windows, b.windows)
    np.testing.assert_array_equal(a.tokens, b.tokens)
    assert a.base.nll == b.base.nll
    np.testing.assert_array_equal(a.base.nll_stderr, b.base.nll_stderr)
