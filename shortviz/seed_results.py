"""What the seed's calls do with their (L, L) array, `result[n-1, start]`: best start, table, distances of one's own."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shortviz.capture import residual_boundaries
from shortviz.criteria.angles import angle
from shortviz.errors import NumericsError, PlanError, ShortvizError
from shortviz.handle import ModelHandle
from shortviz.records import Floats, TokenSet

Distance = Callable[[Tensor, Tensor], float]
"""(input, output) of a block, each (1, tokens, hidden) in float32 on the CPU -> one number, low = redundant."""


def get_best_pruning_start(result: Floats, block_size: int) -> int:
    """Return the start of the lowest block of `block_size` layers; raises PlanError where no such block exists."""
    num_layers = result.shape[0]
    if not 1 <= block_size < num_layers:
        raise PlanError(f"block_size is {block_size}; it must be 1 to {num_layers - 1} for {num_layers} layers.")
    return int(np.argmin(result[block_size - 1, : num_layers - block_size + 1]))


def get_scored_blocks(
    result: Floats, return_md: bool = True, threshold: float = math.inf
) -> str | dict[int, dict[str, float]]:
    """Return the lowest block of each size 1 .. L-1 that scores at most `threshold`.

    A Markdown table, or with `return_md=False` a dict: size -> {"start_layer", "score"}.
    """
    scored: dict[int, dict[str, float]] = {}
    for size in range(1, result.shape[0]):
        start = get_best_pruning_start(result, size)
        score = float(result[size - 1, start])
        if score <= threshold:
            scored[size] = {"start_layer": start, "score": score}
    if not return_md:
        return scored
    head = "| Block_size | Removed_layers | Score (avg dist)|\n| -------- | ------- | -------- |\n"
    layers = {size: f"{found['start_layer']}-{int(found['start_layer']) + size - 1}" for size, found in scored.items()}
    return head + "".join(f"| {size} | {layers[size]} | {found['score']:.3f}|\n" for size, found in scored.items())


def get_angular_distance_ith_token(i: int) -> Distance:
    """Return the angle at token i as a distance, in half turns: 0 the same direction, 1 opposite."""

    def angular_distance_ith_token(block_input: Tensor, block_output: Tensor) -> float:
        tokens = block_input.shape[1]
        if not -tokens <= i < tokens:
            raise ShortvizError(f"There is no token {i} in a row of {tokens} tokens; choose longer rows.")
        return float(angle(block_input[0, i], block_output[0, i]))

    return angular_distance_ith_token


def measure_callable(handle: ModelHandle, tokens: TokenSet, distance: Distance) -> Floats:
    """Return a distance of someone's own, averaged over rows, shape (L, L), 0 outside the triangle.

    It is called L(L+1)/2 times a row, so this is slow beside the built-in criteria, which share one Gram matrix.
    Raises NumericsError where it returns no finite number.
    """
    num_layers = handle.info.num_layers
    result = np.zeros((num_layers, num_layers))
    for number, row in enumerate(tokens.rows):
        states = _states(handle, torch.from_numpy(np.array(row))[None])
        for start in range(num_layers):
            for end in range(start + 1, num_layers + 1):
                value = float(distance(states[start], states[end]))
                if not math.isfinite(value):
                    raise NumericsError(
                        f"The distance given returned {value} for layers {start}-{end - 1} of row {number}; "
                        "it must return a finite number."
                    )
                result[end - start - 1, start] += (value - result[end - start - 1, start]) / (number + 1)
    return result


def _states(handle: ModelHandle, ids: Tensor) -> list[Tensor]:
    states: list[Tensor] = []

    def keep(_boundary: int, hidden: Tensor) -> None:
        states.append(hidden.detach().to("cpu", torch.float32, copy=True))

    with handle.lock, torch.no_grad(), residual_boundaries(handle, keep) as decoder:
        decoder(input_ids=ids.to(handle.model.device), use_cache=False)
    return states
