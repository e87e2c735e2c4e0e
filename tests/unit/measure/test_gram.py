"""The scores of a batch's states: the way of a GPU, tried without one."""

import numpy as np
import pytest
import torch

from shortviz import criteria as known
from shortviz.criteria import info
from shortviz.criteria.base import Criterion
from shortviz.measure.gram import BoundaryStates, sequence_scores


class AsOnGpu:
    """States on the CPU that say they are on a GPU: whole chunks, larger ones, sums beside them."""

    def __init__(self, states: BoundaryStates) -> None:
        self.states, self.device, self.num_boundaries = states, torch.device("cuda"), states.num_boundaries

    def of_tokens(self, rows: torch.Tensor) -> torch.Tensor:
        return self.states.of_tokens(rows)


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).abs().sum(-1)


@pytest.mark.parametrize("slow", [False, True])
def test_the_way_of_a_gpu_gives_the_scores_of_the_cpu(slow):
    lengths, width = (700, 3, 555), 700
    states = BoundaryStates(5)
    draw = torch.Generator().manual_seed(0)
    for boundary in range(5):
        states.keep(boundary, torch.randn(3, width, 24, generator=draw) * (1 + boundary))
    chosen = [info(name) for name in known.names() if not info(name).from_sample]
    if slow:
        chosen.append(
            Criterion(
                name="own", label="own", units="", low=0.0, high=np.inf, tokens="all", source="", explanation="",
                score=distance,
            )
        )  # fmt: skip
    expected = sequence_scores(states, lengths, width, chosen)
    found = sequence_scores(AsOnGpu(states), lengths, width, chosen)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.abs(values).sum() > 0
        np.testing.assert_allclose(found[name], values, rtol=1e-12, err_msg=name)
