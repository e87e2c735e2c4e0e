"""How fast this machine runs one layer of a model, timed with made-up weights: nothing is downloaded or read."""

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortviz.architectures import LayerStack, text_config
from shortviz.criteria import info, names
from shortviz.criteria.linear_replacement import replacement_errors
from shortviz.errors import ModelError, Stopped
from shortviz.gram import BoundaryStates, sequence_scores
from shortviz.layer_calls import record_calls, returns_tuple, run_on_meta
from shortviz.logits import synchronise
from shortviz.model_info import weight_size
from shortviz.placement import Placement
from shortviz.prediction_records import Work
from shortviz.replay import LayerCall
from shortviz.state_store import widest
from shortviz.streamed_model import non_layer_modules
from shortviz.streamed_parts import compute_buffers
from shortviz.tiled_head import ROWS, TILE
from shortviz.timed_shapes import Shape, Shapes
from shortviz.token_sample import TokenSample

_SECONDS = 0.3
"""A piece of work is repeated for at least so long; its shortest time counts."""
_POOL = 1 << 20
_FITTED_BOUNDARIES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """Seconds of each kind of work on a model."""

    layers: float
    """All layers once, per token of a batch."""
    fused: float
    """The same while streaming, where small batches go through a layer together."""
    replayed: float
    """The same for windows, as many as the measured map replays at once."""
    trained: float
    """All layers forward and backward, per token of a step of healing."""
    gram: float
    """Comparing all boundaries, per token."""
    head: float
    """Scoring one token of one cut model."""
    fits: float
    """All fits of linear_replacement that follow a measurement."""
    opening: float
    """Opening a model to be streamed: building it on meta, and running its layers there."""
    double: float
    """One multiplication and addition of float64 matrices."""
    read: float
    """Reading all weights into fresh memory in the loaded dtype, checked; 0 where there is no local file."""
    read_again: float
    """The same into memory that was used before, as streaming does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timer:
    """How long work takes, until somebody stops it."""

    stop: threading.Event | None = None

    def check(self) -> None:
        """Raise Stopped once `stop` is set."""
        if self.stop is not None and self.stop.is_set():
            raise Stopped("Stopped while this machine was timed; there is no prediction yet.")

    def shortest(self, work: Callable[[], object], like: Tensor) -> float:
        """Return the shortest of several times of the same work, the first one left out; Stopped between them."""
        self.check()
        work()
        times: list[float] = []
        while sum(times) < _SECONDS and len(times) < 20:
            self.check()
            began = time.perf_counter()
            work()
            synchronise(like)
            times.append(time.perf_counter() - began)
        return min(times)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSeconds:
    """Seconds of all layers."""

    forward: Mapping[Shape, float]
    """Per token."""
    trained: float
    """Per token forward and backward, weights frozen, in the shape of a step of healing."""
    on_meta: float
    """Of their run on meta that tells the size of their caches, once for all tokens."""
    states: torch.dtype
    """Of the residual stream where it is widest."""


@torch.no_grad()
def time_layers(
    model: PreTrainedModel, stack: LayerStack, placement: Placement, shapes: Shapes, timer: Timer
) -> LayerSeconds:
    """Return the seconds of all layers, from one layer of each kind."""
    device, hidden = placement.device, int(text_config(model.config).hidden_size)
    calls, on_meta, dtype = _calls(model, stack, placement, shapes.all)
    kinds: dict[object, list[int]] = {}
    types = getattr(text_config(model.config), "layer_types", None) or [None] * len(stack.layers)
    for index, layer in enumerate(stack.layers):
        kinds.setdefault((weight_size(layer), types[index]), []).append(index)
    forward, trained = dict.fromkeys(shapes.all, 0.0), 0.0
    for members in kinds.values():
        timer.check()
        layer = stack.layers[members[0]]
        _fill(stack, model, layer, device)
        for shape, called in calls.items():
            call = called[members[0]]
            states = torch.randn(*shape, hidden, device=device).to(dtype)
            once = timer.shortest(partial(call.run, layer, states), states)
            forward[shape] += len(members) * once / math.prod(shape)
            if shape == shapes.trained:
                trained += len(members) * _with_backward(layer, call, states, once, timer) / math.prod(shape)
        layer.to("meta")
    return LayerSeconds(forward=forward, trained=trained, on_meta=on_meta, states=dtype)


def _calls(
    model: PreTrainedModel, stack: LayerStack, placement: Placement, shapes: Collection[Shape]
) -> tuple[dict[Shape, list[LayerCall]], float, torch.dtype]:
    """Return what each layer is called with for rows of such shapes, and of a run of all on meta its seconds and dtype.

    The dtype is that of the residual stream. What this takes of memory is given back.
    """
    embedding, device = model.get_input_embeddings(), placement.device
    for module in non_layer_modules(stack):
        if module is not embedding:
            _fill(stack, model, module, device)
    embedding.to_empty(device=device)
    _spread(embedding)
    ids = {shape: torch.arange(math.prod(shape), device=device).view(shape) for shape in shapes}
    ids = {shape: tokens % int(embedding.weight.shape[0]) for shape, tokens in ids.items()}
    two = next(iter(ids.values()))[:1, :2].expand(2, 2)
    in_tuple = returns_tuple(stack, two)
    began = time.perf_counter()
    try:
        dtype = widest(run_on_meta(stack, two, in_tuple=in_tuple).dtypes)
    except ModelError:  # it cannot be streamed; the rest can be timed
        dtype = placement.dtype
    on_meta = time.perf_counter() - began
    calls = {shape: record_calls(stack, tokens, in_tuple=in_tuple)[1] for shape, tokens in ids.items()}
    for module in non_layer_modules(stack):
        module.to("meta")
    return calls, on_meta, dtype


def _with_backward(layer: nn.Module, call: LayerCall, states: Tensor, forward: float, timer: Timer) -> float:
    """Return the seconds of a layer forward and backward, weights frozen; thrice forward where it has no gradient."""

    def run() -> None:
        entering = states.detach().requires_grad_()
        with torch.enable_grad():
            call.run(layer, entering).float().sum().backward()

    try:
        return timer.shortest(run, states)
    except (RuntimeError, NotImplementedError):
        return 3 * forward


def time_gram(num_boundaries: int, hidden: int, device: torch.device, dtype: torch.dtype, timer: Timer) -> float:
    """Return seconds per token of comparing all boundaries by every criterion that is summed."""
    states, rows = BoundaryStates(num_boundaries), torch.randn(2, 64, hidden, device=device)
    for boundary in range(num_boundaries):
        states.keep(boundary, rows.to(dtype) * (1 + boundary))
    summed = [criterion for criterion in map(info, names()) if not criterion.from_sample]
    return timer.shortest(lambda: sequence_scores(states, [64, 64], 64, summed), rows) / 128


def time_head(hidden: int, vocabulary: int, placement: Placement, timer: Timer) -> float:
    """Return seconds to score one token of one cut model, as `tiled_head` does: tiles of logits, their exponentials."""
    tiles = [torch.randn(TILE, hidden, device=placement.device).to(placement.dtype) for _ in range(8)]
    states = torch.randn(ROWS, hidden, device=placement.device).to(placement.dtype)

    def run() -> Tensor:
        total = torch.zeros(ROWS, device=placement.device)
        for tile in tiles:
            logits = nn.functional.linear(states, tile).float()
            total += logits.sub_(logits.amax(-1, keepdim=True)).exp_().sum(-1)
        return total

    return timer.shortest(run, states) / ROWS * vocabulary / (TILE * len(tiles))


def time_fits(num_boundaries: int, hidden: int, work: Work, timer: Timer) -> float:
    """Return the seconds of all fits of linear_replacement that follow a measurement.

    Each start has one system to solve, and each end behind it the map to be applied to: few boundaries tell both.
    """
    sample, few = TokenSample.of_rows(work.rows, num_boundaries, hidden, None), min(num_boundaries, _FITTED_BOUNDARIES)
    taken = torch.tensor([min(count, work.row_tokens - 1) for count in sample.counts if count])
    rows = torch.arange(len(taken)).repeat_interleave(taken)
    states = torch.randn(len(rows), few, hidden)
    if replacement_errors(states[:, :2], rows) is None:
        return 0.0
    one = timer.shortest(lambda: replacement_errors(states[:, :2], rows), states)
    more = timer.shortest(lambda: replacement_errors(states, rows), states)
    applied = max(more - (few - 1) * one, 0.0) / ((few - 1) * (few - 2) / 2)
    return (num_boundaries - 1) * (max(one - applied, 0.0) + num_boundaries / 2 * applied)


def time_product(timer: Timer) -> float:
    """Return seconds of one multiplication and addition in a product of large float64 matrices on the CPU."""
    side = 768
    matrix = torch.randn(side, side, dtype=torch.float64)
    return timer.shortest(lambda: matrix @ matrix, matrix) / side**3


def _fill(stack: LayerStack, model: PreTrainedModel, module: nn.Module, device: torch.device) -> None:
    module.to_empty(device=device)
    _spread(module)
    for weight in module.parameters():
        weight.requires_grad_(False)
        weight._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers' own mark: leave it alone
    compute_buffers(model, stack, module, device)


def _spread(module: nn.Module) -> None:
    """Fill weights with small numbers: a million random ones, over and over."""
    pool = torch.randn(_POOL) * 0.02
    for weight in (*module.parameters(), *module.buffers()):
        if weight.is_floating_point():
            flat = weight.data.view(-1)
            for low in range(0, len(flat), _POOL):
                part = flat[low : low + _POOL]
                part.copy_(pool[: len(part)])
        else:
            weight.zero_()
