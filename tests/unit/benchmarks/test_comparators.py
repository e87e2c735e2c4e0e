"""The comparators of the repair benchmark do what their formulas say, and leave the cut model as it was."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.comparators import (
    COMPARATORS,
    free_map,
    hadamard,
    linear_patch,
    scale_by_layers,
    seam_mapped,
    streams,
    weighted_map,
)
from benchmarks.repair import Bench, best_blocks, table
from shortviz.model.handle import ModelHandle
from shortviz.model.layers import layer_stack
from shortviz.model.prune import prune, put_weights, shared_copy
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TextInfo, TokenSet, WindowSet
from shortviz.repair.repair import repair
from shortviz.runs.run import example_run
from tests.support.families import NUM_LAYERS, shared_handle
from tests.support.repairs import written_by

WIDTH = 32


class LinearLayer(nn.Module):
    """A layer that multiplies the stream by a matrix."""

    def __init__(self) -> None:
        super().__init__()
        noise = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5))
        self.matrix = nn.Parameter(torch.eye(WIDTH) + noise / WIDTH, requires_grad=False)

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states @ self.matrix


@pytest.fixture(scope="module")
def llama() -> ModelHandle:
    return shared_handle("llama")


@pytest.fixture(scope="module")
def text(llama: ModelHandle) -> WindowSet:
    rows = np.stack([row[:22] for row in written_by(llama, rows=24).rows])
    return WindowSet(tokens=rows, info=TextInfo(source="rows", rows=24, tokens=rows.size, fingerprint="test"))


def cut_of(base: ModelHandle, block: Block) -> ModelHandle:
    return prune(base, PrunePlan.of_blocks(NUM_LAYERS, block))


@torch.inference_mode()
def logits(handle: ModelHandle, text: WindowSet) -> Tensor:
    return handle.model(input_ids=torch.as_tensor(text.tokens), use_cache=False).logits


@pytest.mark.parametrize("size", [1, 2, 12, 20, 28, 32, 36, 576, 896])
def test_a_hadamard_matrix_is_orthogonal_and_all_its_numbers_are_of_one_size(size: int) -> None:
    matrix = hadamard(size)
    assert matrix.shape == (size, size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5))


def test_a_size_that_no_construction_gives_is_refused() -> None:
    with pytest.raises(ValueError, match="no Hadamard matrix of size 18"):
        hadamard(18)


@pytest.mark.parametrize("start", [0, 2, NUM_LAYERS - 1], ids=["first", "inner", "last"])
def test_a_free_map_reproduces_a_layer_that_is_linear_and_then_goes(
    llama: ModelHandle, text: WindowSet, start: int
) -> None:
    base = shared_copy(llama)
    layer_stack(base.model).layers[start] = LinearLayer()
    block = Block(start=start, n=1)
    cut = cut_of(base, block)
    bare, whole = logits(cut, text), logits(base, text)
    found = streams(base, text, {start, start + 1})
    with seam_mapped(cut, start, free_map(found[start], found[start + 1])):
        torch.testing.assert_close(logits(cut, text), whole, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(bare, whole, rtol=1e-2, atol=1e-2)
    assert torch.equal(logits(cut, text), bare)


def test_a_block_that_did_nothing_leaves_every_map_the_identity(llama: ModelHandle, text: WindowSet) -> None:
    base = shared_copy(llama)
    layer = layer_stack(base.model).layers[2]
    put_weights(layer, {name: torch.zeros_like(weight) for name, weight in layer.named_parameters()})
    found = streams(base, text, {2, 3})
    maps = linear_patch(found[2], found[3]), free_map(found[2], found[3]), weighted_map(found[2], found[3])[0]
    cut = cut_of(base, Block(start=2, n=1))
    for matrix in maps:
        torch.testing.assert_close(matrix, torch.eye(WIDTH, dtype=torch.float64))
        with seam_mapped(cut, 2, matrix):
            torch.testing.assert_close(logits(cut, text), logits(base, text), rtol=1e-4, atol=1e-4)


def test_linear_patch_finds_scales_that_were_put_in_behind_the_transform() -> None:
    generator = torch.Generator().manual_seed(1)
    before = torch.randn(4, 50, 12, generator=generator, dtype=torch.float64)
    scales = 0.5 + torch.rand(12, generator=generator, dtype=torch.float64)
    turn = hadamard(12)
    wanted = turn @ torch.diag(scales) @ turn.T
    torch.testing.assert_close(linear_patch(before, before @ wanted), wanted)


def test_a_weighted_map_counts_a_token_by_its_relative_error() -> None:
    generator = torch.Generator().manual_seed(2)
    before = torch.randn(16, 20, 6, generator=generator, dtype=torch.float64)
    after = before * 1.5
    before[:, 0], after[:, 0] = (
        1000 * before[:, 0],
        -1000 * before[:, 0],
    )  # a sink in each row that asks for the opposite
    plain = before @ free_map(before, after) - after
    ours = before @ weighted_map(before, after)[0] - after
    assert ours[:, 1:].norm() < 0.3 * plain[:, 1:].norm()


def test_scaling_layer_by_layer_with_one_layer_equals_scaling_once(llama: ModelHandle, text: WindowSet) -> None:
    block = Block(start=2, n=1)
    handle, steps = scale_by_layers(llama, block, text)
    once = repair(cut_of(llama, block), llama, TokenSet(rows=tuple(text.tokens), info=text.info), method="scale")
    assert steps == [{"layer": 2, "factor": once.treatment.settings["factor"], "applied": once.applied}]
    assert once.applied
    weights = once.handle.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in handle.model.state_dict().items())


def test_all_methods_are_measured_on_the_same_cut_and_tabled(llama: ModelHandle, text: WindowSet) -> None:
    block = Block(start=2, n=2)
    handle, steps = scale_by_layers(llama, block, text)
    assert handle.plan == PrunePlan.of_blocks(NUM_LAYERS, block)
    assert sorted(step["layer"] for step in steps) == [2, 3]
    rows = Bench(llama, text, {"same": text}).block(block, list(COMPARATORS))
    assert [row["method"] for row in rows] == list(COMPARATORS)
    assert len({row["lost"] for row in rows}) == 1
    assert rows[0]["share"] == 0
    shown = table(rows, "same", list(COMPARATORS)).splitlines()
    assert shown[0].startswith("| same | cut | scale |")
    assert [line.split(" ")[1] for line in shown[2:]] == ["(2,2)", "median"]


def test_the_bundled_run_names_the_blocks_that_are_repaired() -> None:
    blocks = best_blocks(None, [1, 4, 8])
    assert [block.n for block in blocks] == [1, 4, 8]
    losses = example_run().losses
    assert losses is not None
    for block in blocks:
        assert losses.increase.rank(block) == 1
