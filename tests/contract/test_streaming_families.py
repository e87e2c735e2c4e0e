"""Every family: streamed layer by layer from its files, the numbers are those of the pass in memory, bit for bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shortviz.distances import measure_distances
from shortviz.loading import load
from shortviz.records import ModelRef, TextInfo, TokenSet
from shortviz.streamed_model import open_streamed
from shortviz.streaming import measure_streamed
from tests.families import FAMILIES, shared_handle

LENGTHS = (9, 14, 2, 11, 34)


def rows() -> TokenSet:
    draw = np.random.default_rng(3)
    found = tuple(draw.integers(0, 256, length).astype(np.int64) for length in LENGTHS)
    return TokenSet(rows=found, info=TextInfo(source="random", rows=5, tokens=sum(LENGTHS), fingerprint="s"))


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    handle = shared_handle(request.param)
    handle.model.save_pretrained(tmp_path)
    handle.tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_streamed_distances_equal_those_of_the_loaded_model_bit_for_bit(folder: Path) -> None:
    ref, tokens = ModelRef(id=str(folder)), rows()
    handle = load(ref)
    expected = measure_distances(handle, tokens, batch_size=3)
    with open_streamed(ref) as streamed:
        assert replace(streamed.info, reason="") == replace(handle.info, reason="")
        found = measure_streamed(streamed, tokens, batch_size=3)
        assert all(p.is_meta for p in streamed.model.parameters()), "no weight stays in memory"
    for name, grid in expected.criteria.items():
        np.testing.assert_array_equal(found.criteria[name].mean, grid.mean, err_msg=name)
        np.testing.assert_array_equal(found.criteria[name].stderr, grid.stderr, err_msg=name)
    np.testing.assert_array_equal(found.norms.first, expected.norms.first)
