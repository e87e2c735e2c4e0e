"""What each decoder layer is called with, found without running any layer.

The decoder's own forward pass is run with recorders in the place of its layers: they note their arguments (masks,
position embeddings, by layer type) and pass the residual stream on. That is exact as long as a layer is told nothing
by the layers before it but the residual stream; `check_independent` finds out, for all layers, without weights.
"""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shortviz.errors import ModelError
from shortviz.model.layers import LayerCall, LayerStack, hidden_argument
from shortviz.model.load import cache_bytes

Change = Callable[[int, Tensor], Tensor]
"""(layer, residual stream that enters it) -> the residual stream that a recorder passes on."""

CHECKED_TOKENS = 12
_UNFIT = (TypeError, ValueError, AttributeError, RuntimeError, IndexError)
"""What a decoder raises that cannot do with recorders in the place of its layers."""


class _AllRecordedError(Exception):
    """Ends the decoder's forward pass once the last layer's arguments are known."""


class _Recorder(nn.Module):
    """Stands in for a layer; the decoder may still read the real one's attributes."""

    def __init__(self, real: nn.Module, visit: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self.__dict__.update(real=real, visit=visit)  # not as a submodule: it would be listed twice

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["real"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Note the arguments and pass the residual stream on."""
        return self.__dict__["visit"](args, kwargs)


@contextmanager
def _recorders(stack: LayerStack, visit: Callable[[int, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """Put recorders in the place of the layers; each returns what `visit(layer, args, kwargs)` does."""
    attribute = stack.path.rpartition(".")[2]
    recorders = (_Recorder(layer, partial(visit, index)) for index, layer in enumerate(stack.layers))
    setattr(stack.decoder, attribute, nn.ModuleList(recorders))
    try:
        yield
    finally:
        setattr(stack.decoder, attribute, stack.layers)


def record_calls(
    stack: LayerStack, tokens: Tensor, *, in_tuple: bool, change: Change | None = None, use_cache: bool = False
) -> tuple[list[Tensor], list[LayerCall]]:
    """Return what entered each layer as residual stream and what else it was called with, for rows of tokens.

    `in_tuple` says whether the decoder expects its layers to return a tuple. Without `change` every recorder passes on
    what it got. Only for a model of one's own: its layer list is replaced for the time of the call.
    """
    entered: list[Tensor] = []
    calls: list[LayerCall] = []

    def note(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = hidden_argument(index, args, kwargs)
        if len(calls) != index:
            raise ModelError(f"Layer {index} runs out of turn (after {len(calls)} others); it cannot be streamed.")
        entered.append(hidden)
        calls.append(LayerCall.of(args, kwargs))
        if index == len(stack.layers) - 1:
            raise _AllRecordedError
        passed = calls[-1].native(hidden if change is None else change(index, hidden))
        return (passed, None) if in_tuple else passed

    with _recorders(stack, note):
        try:
            stack.decoder(input_ids=tokens, use_cache=use_cache)
        except _AllRecordedError:
            return entered, calls
    raise ModelError(f"The decoder called {len(calls)} of its {len(stack.layers)} layers; it cannot be streamed.")


def finish(model: nn.Module, stack: LayerStack, tokens: Tensor, final: Tensor, *, in_tuple: bool) -> Any:
    """Return what the model makes of `final`, the state at boundary L, by its own code: norm, head, scalings.

    The decoder and the head must be filled; the layers need not be.
    """

    def pass_on(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        last = index == len(stack.layers) - 1
        passed = LayerCall.of(args, kwargs).native(final if last else hidden_argument(index, args, kwargs))
        return (passed, None) if in_tuple else passed

    with _recorders(stack, pass_on):
        return model(input_ids=tokens, use_cache=False)


def returns_tuple(stack: LayerStack, tokens: Tensor) -> bool:
    """Return whether the decoder expects a tuple from its layers, found by trying both.

    Raises ModelError where it bears neither.
    """
    for in_tuple in (False, True):
        try:
            record_calls(stack, tokens, in_tuple=in_tuple)
        except (ModelError, *_UNFIT) as error:
            reason = str(error)
        else:
            return in_tuple
    raise ModelError(f"{type(stack.decoder).__name__} cannot be streamed layer by layer ({reason}).")


def check_independent(stack: LayerStack, tokens: Tensor, *, in_tuple: bool) -> None:
    """Raise ModelError, naming the layer and the argument, where a layer is told more than the residual stream.

    Two passes: in the second each recorder passes on another residual stream. Whatever else a layer is called with must
    not change, must be plain data, and the stream must reach the next layer as it was passed on.
    """
    name = type(stack.decoder).__name__
    passed: list[Tensor] = []

    def disturb(index: int, hidden: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        noise = torch.randn(hidden.shape, generator=generator).to(hidden.device, hidden.dtype)
        passed.append(hidden.mul(0.5).add(noise))
        return passed[-1]

    _, plain = record_calls(stack, tokens, in_tuple=in_tuple)
    entered, disturbed = record_calls(stack, tokens, in_tuple=in_tuple, change=disturb)
    for index, (left, right) in enumerate(zip(plain, disturbed, strict=True)):
        if index and not torch.equal(entered[index], passed[index - 1]):
            raise ModelError(
                f"{name} changes the residual stream between layers {index - 1} and {index}; it cannot be streamed."
            )
        where = difference(left, right)
        if where is not None:
            raise ModelError(
                f"Layer {index} of {name} is given {where}, which the layers before it may change; it cannot be "
                "streamed: choose a machine that the whole model fits on."
            )


def difference(left: LayerCall, right: LayerCall, *, rounding: bool = False) -> str | None:
    """Return the name of the first argument in which two calls differ; None where both are plain data and equal.

    With `rounding`, numbers that differ by no more are equal.
    """
    if left.kwargs.keys() != right.kwargs.keys() or len(left.args) != len(right.args):
        return "other arguments from call to call"
    named, theirs = ({f"argument {i + 1}": a for i, a in enumerate(call.args)} | call.kwargs for call in (left, right))
    return next((where for where, value in named.items() if not _same(value, theirs[where], rounding)), None)


def rounded_as(call: LayerCall, other: LayerCall) -> LayerCall:
    """Return the call with those tensors of another in the place of its own that differ from them by rounding alone.

    A kernel chooses its path by the size of the matrix: the inputs of all layers together (Gemma 3n and 4) come out of
    a larger one than those of the layers that stay.
    """

    def nearer(mine: Any, theirs: Any) -> Any:
        return theirs if isinstance(mine, Tensor) and _same(mine, theirs, True) else mine

    args = tuple(map(nearer, call.args, other.args))
    return replace(call, args=args, kwargs={name: nearer(a, other.kwargs[name]) for name, a in call.kwargs.items()})


def _same(a: Any, b: Any, rounding: bool) -> bool:
    """Tell whether two values are plain data and equal; a store is while it is empty: what layers leave is theirs."""
    if isinstance(a, MutableMapping):
        return type(a) is type(b) and not a and not b
    if isinstance(a, Tensor):
        alike = isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype
        return alike and (torch.equal(a, b) or (rounding and _close(a, b)))
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(_same(x, y, rounding) for x, y in zip(a, b, strict=True))
    return (a is None or isinstance(a, bool | int | float | str)) and type(a) is type(b) and a == b


def _close(a: Tensor, b: Tensor) -> bool:
    margin = 8 * torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
    return torch.allclose(a, b, rtol=margin, atol=margin) if margin else False


class CallBook:
    """The calls of many batches, each tensor that repeats (masks, rotary tables of one length) kept once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], list[Tensor]] = {}
        self.num_bytes = 0
        """Bytes of all tensors kept."""

    def add(self, calls: Sequence[LayerCall]) -> tuple[LayerCall, ...]:
        """Return the calls of one batch, made of the tensors of this book."""
        seen: dict[int, Tensor] = {}

        def kept(tensor: Tensor) -> Tensor:
            if id(tensor) not in seen:
                seen[id(tensor)] = self._find(tensor)
            return seen[id(tensor)]

        return tuple(call.mapped(kept) for call in calls)

    def _find(self, tensor: Tensor) -> Tensor:
        shelf = self._known.setdefault((tuple(tensor.shape), tensor.stride(), tensor.dtype), [])
        found = next((known for known in shelf if torch.equal(known, tensor)), None)
        if found is None:
            # A view keeps the strides it has (an expanded mask is one row of memory).
            shelf.append(tensor)
            self.num_bytes += tensor.untyped_storage().nbytes()
            found = tensor
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class OnMeta:
    """What the layers of a model tell without their weights."""

    cache_bytes: tuple[int, ...]
    """By how many bytes each layer's keys and values grow with a token."""
    dtypes: tuple[torch.dtype, ...]
    """Of the residual stream at boundary 0..L: some families keep it wider than they compute (Mamba)."""


def run_on_meta(stack: LayerStack, tokens: Tensor, *, in_tuple: bool) -> OnMeta:
    """Return what the layers tell when they run on meta, on one token and on two.

    Each runs as far as it will: attention fills the cache before experts ask for real numbers, and such a layer is
    taken to keep the dtype that it was given. Raises ModelError where the decoder does not fill a cache so.
    """
    try:
        one, dtypes = _run_on_meta(stack, tokens[:1, :1], in_tuple)
        two, _ = _run_on_meta(stack, tokens[:1, :2], in_tuple)
    except _UNFIT as error:
        raise ModelError(
            f"{type(stack.decoder).__name__} cannot be streamed: its layers do not fill a cache one by one ({error})."
        ) from error
    return OnMeta(cache_bytes=tuple(max(b - a, 0) for a, b in zip(one, two, strict=True)), dtypes=tuple(dtypes))


def _run_on_meta(stack: LayerStack, tokens: Tensor, in_tuple: bool) -> tuple[list[int], list[torch.dtype]]:
    """Return (bytes in each layer's cache, dtype at each boundary)."""
    entered, calls = record_calls(stack, tokens, in_tuple=in_tuple, use_cache=True)
    sizes, hidden = [], entered[0].to("meta")
    dtypes = [hidden.dtype]
    for index, (layer, call) in enumerate(zip(stack.layers, calls, strict=True)):
        values = (*call.args, *call.kwargs.values())
        cache = next((value for value in values if isinstance(getattr(value, "layers", None), list)), None)
        with suppress(RuntimeError, NotImplementedError, ValueError, TypeError):
            hidden = call.mapped(lambda tensor: tensor.to("meta")).run(layer, hidden)
        dtypes.append(hidden.dtype)
        held = cache.layers[index] if cache is not None and index < len(cache.layers) else None
        sizes.append(cache_bytes(held))
    return sizes, dtypes
