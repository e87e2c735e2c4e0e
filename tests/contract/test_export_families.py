"""Every family: an exported block reloads in stock transformers with the same logits, and caches without a fault."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shortviz.export.export import write_checkpoint
from shortviz.export.proving import FreshProcess, fresh_process, prove_checkpoint
from shortviz.model.prune import prune
from shortviz.records.plan import PrunePlan
from tests.support.families import FAMILIES, NUM_LAYERS, plan_for, tiny_handle


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshProcess]:
    """One fresh process for all families: starting one costs seconds of imports."""
    with fresh_process(tmp_path_factory.mktemp("proof")) as process:
        yield process


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_cut_reloads_with_the_same_logits_and_generates_alike_with_and_without_a_cache(
    family: str, child: FreshProcess, tmp_path: Path
) -> None:
    handle = tiny_handle(family)
    pruned = prune(handle, plan_for(handle))
    configs = pruned.model.config.to_dict(), handle.model.config.to_dict()
    write_checkpoint(pruned, tmp_path / "checkpoint")
    proof = prove_checkpoint(child, pruned, tmp_path / "checkpoint", tmp_path)
    assert proof.max_logit_diff == 0.0
    assert len(proof.prompt_lengths) == 4
    assert (pruned.model.config.to_dict(), handle.model.config.to_dict()) == configs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral"])
def test_half_precision_checkpoints_keep_their_dtype_and_are_equal(
    family: str, dtype: torch.dtype, child: FreshProcess, tmp_path: Path
) -> None:
    pruned = prune(tiny_handle(family, dtype), PrunePlan(num_layers=NUM_LAYERS, removed=(0, 3)))
    write_checkpoint(pruned, tmp_path / "checkpoint")
    assert prove_checkpoint(child, pruned, tmp_path / "checkpoint", tmp_path).max_logit_diff == 0.0
