"""Batches that go through a layer together: which, and that no bit may change by it."""

import numpy as np
import pytest
import torch

from shortviz.measure.distances import measure_distances
from shortviz.model.layers import LayerCall
from shortviz.model.load import load
from shortviz.records.model import ModelRef
from shortviz.streaming.distances import FUSED_TOKENS, FusedRunner, groups_of, measure_streamed
from shortviz.streaming.model import open_streamed
from shortviz.streaming.states import batch_shapes
from tests.support.families import build_tiny, tiny_tokenizer
from tests.support.streams import rows

CALL = LayerCall(positional=True, args=(), kwargs={})


class Counted(torch.nn.Module):
    """A linear layer that counts its calls; `change` is added once more rows than one come together."""

    def __init__(self, change: float = 0.0, name: str = "linear") -> None:
        super().__init__()
        self.add_module(name, torch.nn.Linear(8, 8).requires_grad_(False))
        self.name, self.change, self.calls = name, change, 0

    def forward(self, hidden):
        self.calls += 1
        return getattr(self, self.name)(hidden) + (self.change if len(hidden) > 4 else 0.0)


def states(count: int = 3) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    return [torch.randn(4, 6, 8, generator=draw) for _ in range(count)]


def test_neighbours_of_one_width_go_together_up_to_a_number_of_tokens():
    rows = [[range(9)] * 2, [range(9), range(4)], [range(7)], [range(7)], [range(200)], [range(200)], [range(200)]]
    shapes = batch_shapes(rows)
    assert groups_of(shapes, torch.float32) == [range(0, 2), range(2, 4), range(4, 6), range(6, 7)]
    assert groups_of(batch_shapes([[range(FUSED_TOKENS)]] * 2), torch.float32) == [range(0, 1), range(1, 2)]
    for narrow in (torch.bfloat16, torch.float16):
        assert groups_of(shapes, narrow) == [range(i, i + 1) for i in range(7)]


def test_a_group_gives_the_bits_of_its_batches_and_every_shape_is_tried_once():
    layer, runner = Counted(), FusedRunner()
    alone = [layer(state) for state in states()]
    layer.calls = 0
    for calls in (4, 5):  # together and each batch alone, then together
        found = runner.run(layer, states(), [CALL] * 3, CALL)
        assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))
        assert layer.calls == calls
    runner.run(layer, states(2), [CALL] * 2, CALL)
    assert layer.calls == 8, "a group of another size is tried anew"


def test_where_a_bit_would_change_batches_run_one_by_one_from_then_on():
    layer, runner = Counted(change=1e-6), FusedRunner()
    alone = [layer(state) for state in states()]
    for _ in range(2):
        found = runner.run(layer, states(), [CALL] * 3, CALL)
        assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_floats_whose_rounding_hides_another_path_at_times_give_the_same_numbers(tmp_path, dtype):
    # Together, one of the 13 batches came out otherwise in layer 1 in float16, after layer 0 had shown no difference.
    build_tiny("gemma2").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    ref, tokens, names = ModelRef(id=str(tmp_path), dtype=dtype), rows((37,) * 13), ["angular_mean", "euclidean_last"]
    expected = measure_distances(load(ref), tokens, batch_size=1, criteria=names)
    with open_streamed(ref) as model:
        found = measure_streamed(model, tokens, batch_size=1, criteria=names)
    for name in names:
        np.testing.assert_array_equal(found.criteria[name].mean, expected.criteria[name].mean, err_msg=name)


class LastRows(torch.nn.Linear):
    """Takes another path for what is left after full groups of four rows, as kernels do, and rounds otherwise there."""

    def forward(self, hidden):
        found = super().forward(hidden)
        if len(hidden) > 4:
            found[8:] += 1e-6
        return found


def test_each_place_in_a_group_is_tried_for_kernels_treat_the_last_rows_otherwise():
    layer = LastRows(8, 8).requires_grad_(False)
    alone = [layer(state) for state in states()]
    found = FusedRunner().run(layer, states(), [CALL] * 3, CALL)
    assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


@pytest.mark.parametrize("name", ["experts", "shared_expert"])
def test_layers_that_sort_tokens_to_experts_are_never_run_in_groups(name):
    layer = Counted(name=name)
    FusedRunner().run(layer, states(), [CALL] * 3, CALL)
    assert layer.calls == 3
