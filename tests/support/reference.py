"""Slow, independent float64 computations, written from the papers' formulas and sharing no code with shortviz.

One sequence at a time, one pair of boundaries at a time, numpy only; the boundaries are read by hooks of its own.
"""

import math

import numpy as np
import torch

Array = np.ndarray


def boundaries(model: torch.nn.Module, layers: torch.nn.ModuleList, ids: Array) -> Array:
    """Return the residual stream of one sequence at every boundary, shape (L+1, tokens, hidden), float64."""
    seen: dict[int, Array] = {}

    def of_first_row(hidden: torch.Tensor) -> Array:
        if hidden.ndim == 4:  # gemma3n: all of its streams, (streams, batch, tokens, hidden), are what a layer changes
            return np.concatenate([stream[0].double().cpu().numpy() for stream in hidden], axis=-1)
        return hidden[0].double().cpu().numpy().copy()

    def reader(index: int):
        def read(_module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            seen[index] = of_first_row(hidden)

        return read

    def last(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        seen[len(layers)] = of_first_row(hidden)

    hooks = [layer.register_forward_pre_hook(reader(i), with_kwargs=True) for i, layer in enumerate(layers)]
    hooks.append(layers[-1].register_forward_hook(last))
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor(ids, device=next(model.parameters()).device)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return np.stack([seen[i] for i in range(len(layers) + 1)])


def angle(u: Array, v: Array) -> float:
    """Angle in half-turns by atan2, Kahan's formula."""
    a, b = u * np.linalg.norm(v), v * np.linalg.norm(u)
    return 2.0 / math.pi * math.atan2(np.linalg.norm(a - b), np.linalg.norm(a + b))


def cosine_distance(u: Array, v: Array) -> float:
    return 1.0 - float(u @ v) / (np.linalg.norm(u) * np.linalg.norm(v))


def euclidean(u: Array, v: Array) -> float:
    return float(np.linalg.norm(v - u))


def relative(u: Array, v: Array) -> float:
    return float(np.linalg.norm(v - u) / np.linalg.norm(v))


RULES = {
    "angular_last": (angle, "last"),
    "angular_mean": (angle, "all"),
    "block_influence": (cosine_distance, "all"),
    "euclidean_last": (euclidean, "last"),
    "relative_magnitude": (relative, "all"),
}


def distances(sequences: list[Array], name: str) -> tuple[Array, Array]:
    """Return (mean, standard error), each [n-1, start] with NaN outside, over sequences of boundary states."""
    rule, tokens = RULES[name]
    size = len(sequences[0]) - 1
    mean, error = np.full((2, size, size), np.nan)
    for start in range(size):
        for n in range(1, size - start + 1):
            samples = []
            for x in sequences:
                positions = [x.shape[1] - 1] if tokens == "last" else range(1, x.shape[1])
                samples.append(np.mean([rule(x[start, t], x[start + n, t]) for t in positions]))
            mean[n - 1, start] = np.mean(samples)
            if len(samples) > 1:
                error[n - 1, start] = np.std(samples, ddof=1) / math.sqrt(len(samples))
    return mean, error


def linear_replacement(sequences: list[Array], positions: list[list[int]], ridge: float) -> Array:
    """Return [n-1, start] of the relative error of the best ridge map, by the primal normal equations.

    Sequences 2, 5, 8, ... are scored and the others fitted on, at the given positions of each.
    """
    size = len(sequences[0]) - 1
    states = [x[:, p] for x, p in zip(sequences, positions, strict=True)]
    fit = np.concatenate([x for i, x in enumerate(states) if i % 3 != 2], axis=1)
    score = [x for i, x in enumerate(states) if i % 3 == 2]
    pooled = np.concatenate(score, axis=1)
    result = np.full((size, size), np.nan)
    for start in range(size):
        x_mean = fit[start].mean(0)
        x = fit[start] - x_mean
        strength = ridge * np.mean(np.sum(x**2, axis=1))
        for n in range(1, size - start + 1):
            y_mean = fit[start + n].mean(0)
            a = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ (fit[start + n] - y_mean))
            target = pooled[start + n]
            spread = np.mean(np.sum((target - target.mean(0)) ** 2, axis=1))
            errors = [
                np.mean(np.sum(((s[start] - x_mean) @ a + y_mean - s[start + n]) ** 2, axis=1)) / spread for s in score
            ]
            result[n - 1, start] = np.mean(errors)
    return result
