"""Speed in turns: the same tokens for both models, and nothing told that the clock cannot tell."""

import threading

import numpy as np
import pytest

from shortviz.errors import Stopped
from shortviz.measure.evidence.speed import measure_paces
from shortviz.model.prune import prune
from shortviz.progress import Watch
from shortviz.records.plan import Block, PrunePlan
from tests.support.families import build_tiny, handle_of


def test_both_models_are_timed_on_the_same_tokens_in_turns() -> None:
    handle = handle_of(build_tiny("llama"))
    cut = prune(handle, PrunePlan.of_blocks(6, Block(start=2, n=2)))
    told: list[str] = []

    paces = measure_paces(handle, cut, np.arange(50), turns=2, watch=Watch(lambda step: told.append(step.detail)))

    assert [pace.name for pace in paces] == [
        "prefill, 1 x 256 tokens",
        "prefill, 8 x 256 tokens",
        "decode, 1 x 32 tokens",
    ]
    assert [pace.tokens for pace in paces] == [256, 2048, 32]
    assert all(len(pace.uncut) == len(pace.cut) == 2 for pace in paces)
    assert min(second for pace in paces for second in (*pace.uncut, *pace.cut)) > 0
    assert set(told) == {pace.name for pace in paces}


def test_a_stop_is_heard_between_two_turns() -> None:
    handle, stop = handle_of(build_tiny("llama")), threading.Event()
    stop.set()

    with pytest.raises(Stopped):
        measure_paces(handle, handle, np.arange(50), watch=Watch(None, stop))
