"""Every family comes back from disk as it was saved: nothing is taken for missing, unexpected or mismatched."""

from pathlib import Path

import pytest
import torch

from shortviz.model.load import estimate, load
from shortviz.records.model import ModelRef
from tests.support.families import FAMILIES, build_tiny, tiny_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_family_loads_equal_and_as_large_as_estimated(family: str, tmp_path: Path) -> None:
    original = build_tiny(family)
    original.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    size = estimate(ModelRef(id=str(tmp_path)))
    handle = load(ModelRef(id=str(tmp_path), device="cpu"))
    state, loaded = original.state_dict(), handle.model.state_dict()
    assert list(state) == list(loaded)
    assert all(torch.equal(state[name], loaded[name]) for name in state)
    assert size.architecture == handle.info.architecture == type(original).__name__
    assert size.num_layers == handle.info.num_layers == 6
    assert size.parameters == pytest.approx(handle.info.parameters, rel=0.01)  # files may hold buffers too
