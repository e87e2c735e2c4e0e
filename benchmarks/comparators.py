"""What others repair a cut with: measured beside our repairs and never exported, for two of them are no stock models.

`COMPARATORS` maps a name to a context manager that lends the repaired model. Bodies of the papers were not at hand:
formulas are from their official repositories, named with file and function; where we had to guess stands at the line.
"""

from collections.abc import Callable, Iterator, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shortviz.model.handle import ModelHandle
from shortviz.model.layers import hidden_output, layer_stack, residual_boundaries
from shortviz.model.prune import prune
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TokenSet, WindowSet
from shortviz.repair.candidate import HELD_OUT_EVERY
from shortviz.repair.fit import RIDGES, Moments
from shortviz.repair.repair import repair

_BATCH = 8
_TWO = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Case:
    """One block that was cut, and the text to fit on."""

    base: ModelHandle
    cut: ModelHandle
    block: Block
    text: WindowSet
    found: dict[str, Any]
    """What a comparator has to say of its fit is put in here, for the result."""

    @property
    def tokens(self) -> TokenSet:
        """The text as a repair takes it."""
        return TokenSet(rows=tuple(self.text.tokens), info=self.text.info)


@torch.inference_mode()
def streams(handle: ModelHandle, text: WindowSet, wanted: Set[int]) -> dict[int, Tensor]:
    """Return the residual stream of a model at boundaries, (rows, tokens, hidden) each."""
    kept: dict[int, list[Tensor]] = {boundary: [] for boundary in wanted}

    def keep(boundary: int, hidden: Tensor) -> None:
        if boundary in kept:
            kept[boundary].append(hidden.clone())

    with handle.lock, residual_boundaries(handle, keep) as decoder:
        for rows in torch.tensor(text.tokens).split(_BATCH):
            decoder(input_ids=rows.to(handle.model.device), use_cache=False)
    return {boundary: torch.cat(parts) for boundary, parts in kept.items()}


@contextmanager
def seam_mapped(cut: ModelHandle, start: int, matrix: Tensor) -> Iterator[ModelHandle]:
    """Lend the cut model with its residual stream x, as it enters layer `start`, replaced by x @ matrix.

    Where the block was the last one, that is what leaves the last layer. Nobody else may use the model meanwhile.
    """
    layers = layer_stack(cut.model).layers
    matrix = matrix.to(cut.model.dtype)

    def enters(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0] @ matrix, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] @ matrix}

    def leaves(_module: Any, _args: Any, output: Any) -> Any:
        mapped = hidden_output(output) @ matrix
        return (mapped, *output[1:]) if isinstance(output, tuple) else mapped

    if start < len(layers):
        hook = layers[start].register_forward_pre_hook(enters, with_kwargs=True)
    else:
        hook = layers[-1].register_forward_hook(leaves)
    try:
        yield cut
    finally:
        hook.remove()


# LinearPatch, arXiv 2505.24680


def hadamard(size: int) -> Tensor:
    """Return an orthogonal matrix of equal magnitudes, (size, size), float64.

    Sylvester's doubling of the smallest matrix that Paley's constructions give. The official code takes its odd-sized
    cores (36 for a width of 576) from Sloane's tables, rotate_utils/hadamard_utils.get_hadK; `had36.pal2` there is of
    the same construction, but perhaps with rows in another order: the scales found then differ, a guess of ours.
    """
    return _signs(size) / size**0.5


def _signs(size: int) -> Tensor:
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if size % 2 == 0:
        with suppress(ValueError):
            return torch.kron(_signs(size // 2), _TWO)
    half = size // 2
    if size % 4 == 0 and _is_prime(size - 1):  # Paley's first construction
        return torch.eye(size, dtype=torch.float64) + _conference(size - 1, -1)
    if half % 4 == 2 and size == 2 * half and _is_prime(half - 1):  # his second
        turned = torch.tensor([[1, -1], [-1, -1]], dtype=torch.float64)
        return torch.kron(_conference(half - 1, 1), _TWO) + torch.kron(torch.eye(half, dtype=torch.float64), turned)
    raise ValueError(f"Doubling and Paley's constructions give no Hadamard matrix of size {size}.")


def _conference(prime: int, sign: int) -> Tensor:
    """Return the matrix with 0 on its diagonal, 1 in its first row, `sign` in its first column and residues inside."""
    squares = {k * k % prime for k in range(1, prime)}
    residue = [0, *(1 if k in squares else -1 for k in range(1, prime))]
    matrix = torch.ones(prime + 1, prime + 1, dtype=torch.float64)
    matrix[0, 0], matrix[1:, 0] = 0, sign
    inside = [[residue[(i - j) % prime] for j in range(prime)] for i in range(prime)]
    matrix[1:, 1:] = torch.tensor(inside, dtype=torch.float64)
    return matrix


def _is_prime(number: int) -> bool:
    return number > 2 and all(number % k for k in range(2, int(number**0.5) + 1))


def linear_patch(before: Tensor, after: Tensor) -> Tensor:
    """Return P = H D H^T for the streams before and after the removed layers, (rows, tokens, hidden) each.

    D: mean over rows of (mean |after H| / mean |before H|), means over the row's tokens (layer_select.get_scale_params
    and block_scaling.generate_symmetric_matrix of github.com/chenxinrui-tsinghua/LinearPatch). Without distillation.
    The paper's rows are 128 of 2,048 tokens of WikiText-2's training part in float16; ours are what is fitted on.
    """
    turn = hadamard(before.shape[-1])
    sizes = [torch.stack([(row.double() @ turn).abs().mean(0) for row in rows]) for rows in (before, after)]
    scales = (sizes[1] / sizes[0]).mean(0)
    return turn @ torch.diag(scales) @ turn.T


def _linear_patch(case: Case) -> AbstractContextManager[ModelHandle]:
    return seam_mapped(case.cut, case.block.start, linear_patch(*_seam(case)))


def _seam(case: Case) -> tuple[Tensor, Tensor]:
    before, after = case.block.start, case.block.start + case.block.n
    found = streams(case.base, case.text, {before, after})
    return found[before], found[after]


# Ghosted Layers, arXiv 2605.15491


def free_map(before: Tensor, after: Tensor) -> Tensor:
    """Return W = I + M, (hidden, hidden), with (X^T X + 1e-6 I) M = X^T (Y - X) in float64, for x -> x W.

    README, "Method", and lib/recovery._compute_ghosted_from_activations of the official repository
    (github.com/daniel-eai/ghosted_layers_official_repository); the paper's Theorem 4.1 by the README. All tokens count
    alike there, an attention sink by its size; the ridge is absolute.
    """
    x, y = (state.flatten(0, 1).double() for state in (before, after))
    one = torch.eye(x.shape[1], dtype=torch.float64)
    return one + torch.linalg.solve(x.T @ x + 1e-6 * one, x.T @ (y - x))


def weighted_map(before: Tensor, after: Tensor) -> tuple[Tensor, float]:
    """Return such a map fitted as the seam refit is, and its ridge: relative errors, ridge from held-out rows.

    Ours, so that the comparison of *what* is refitted does not turn on *how*; in no paper.
    """
    width = before.shape[-1]
    fit_on, held_out = (Moments.zeros([width], width, bias=False, device=torch.device("cpu")) for _ in range(2))
    every = min(HELD_OUT_EVERY, len(before))
    for index, (x, y) in enumerate(zip(before, after, strict=True)):
        (held_out if index % every == every - 1 else fit_on).add(x, y - x, y)
    tried = [(held_out.missed(solution), ridge, solution) for ridge in RIDGES for solution in [fit_on.solve(ridge)]]
    _, ridge, solution = min(tried, key=lambda found: found[0])
    return torch.eye(width, dtype=torch.float64) + solution, ridge


def _free_map(case: Case) -> AbstractContextManager[ModelHandle]:
    return seam_mapped(case.cut, case.block.start, free_map(*_seam(case)))


def _weighted_map(case: Case) -> AbstractContextManager[ModelHandle]:
    matrix, case.found["ridge"] = weighted_map(*_seam(case))
    return seam_mapped(case.cut, case.block.start, matrix)


# What the package has, and Prune&Comp's loop


def _stock(method: str, case: Case) -> AbstractContextManager[ModelHandle]:
    """Lend the cut repaired by a method of the package, which leaves it as it is if held-out rows lose by it."""
    repaired = repair(case.cut, case.base, case.tokens, method=method)
    settings = repaired.treatment.settings
    case.found.update(applied=repaired.applied, found=settings.get("ridge", settings.get("factor", "")))
    return nullcontext(repaired.handle)


def scale_by_layers(base: ModelHandle, block: Block, text: WindowSet) -> tuple[ModelHandle, list[dict[str, Any]]]:
    """Return the model with the block's layers cut one at a time, each cut scaled before the next, and the steps.

    Prune&Comp's loop (arXiv 2507.18212; CosSim_BI.main and magcomp of github.com/chenxinrui-tsinghua/PruneAndComp):
    the gap is measured in the model as the steps before left it, and what goes next is what changes the direction of
    the stream least (block influence). Confined to the block, so that all comparators remove the same layers: a guess
    of what is fair, for the paper's loop chooses among all layers. Their scale multiplies what comes before the seam,
    ours divides what comes behind it (`repair`'s `scale`), and stays away where held-out rows lose by it.
    """
    left, steps, handle = list(block.layers), [], base
    while left:
        place = range(block.start, block.start + len(left))
        states = streams(handle, text, {*place, place.stop})
        likeness = [torch.cosine_similarity(states[i], states[i + 1], dim=-1).mean().item() for i in place]
        at = max(range(len(left)), key=likeness.__getitem__)
        whole = replace(handle, plan=None)  # a model of its own: what is missing is measured from here
        cut = prune(whole, PrunePlan(num_layers=whole.info.num_layers, removed=(block.start + at,)))
        repaired = repair(cut, whole, TokenSet(rows=tuple(text.tokens), info=text.info), method="scale")
        factor = repaired.treatment.settings["factor"]
        steps.append({"layer": left.pop(at), "factor": factor, "applied": repaired.applied})
        handle = repaired.handle
    return replace(handle, plan=PrunePlan.of_blocks(base.info.num_layers, block)), steps


def _scale_by_layers(case: Case) -> AbstractContextManager[ModelHandle]:
    handle, case.found["steps"] = scale_by_layers(case.base, case.block, case.text)
    return nullcontext(handle)


COMPARATORS: dict[str, Callable[[Case], AbstractContextManager[ModelHandle]]] = {
    "cut": lambda case: nullcontext(case.cut),
    "scale": partial(_stock, "scale"),
    "scale_by_layers": _scale_by_layers,
    "linear_fold": partial(_stock, "linear_fold"),
    "linear_patch": _linear_patch,
    "free_map": _free_map,
    "weighted_map": _weighted_map,
    "seam_refit": partial(_stock, "seam_refit"),
    "seam_trained": partial(_stock, "seam_trained"),
}
