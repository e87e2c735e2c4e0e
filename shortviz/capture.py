"""Reading the residual stream: forward pre-hooks that come and go with a context manager."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from shortviz.architectures import layer_stack
from shortviz.errors import ModelError
from shortviz.handle import ModelHandle
from shortviz.progress import Watch


def hidden_argument(layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the residual stream among the arguments of a layer call, shape (batch, tokens, hidden)."""
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        raise ModelError(
            f"Layer {layer} does not take a (batch, tokens, hidden) residual stream; it cannot be measured."
        )
    return hidden


def hidden_output(output: Any) -> Tensor:
    """Return the residual stream that leaves a layer: most families return it bare, a few in a tuple."""
    hidden = output[0] if isinstance(output, tuple) else output
    assert isinstance(hidden, Tensor)
    return hidden


@contextmanager
def hooked_layers(
    layers: nn.ModuleList,
    enters: Callable[[int, tuple[Any, ...], dict[str, Any]], None],
    leaves: Callable[[Tensor], None],
) -> Iterator[None]:
    """Call `enters(i, args, kwargs)` before each layer, and `leaves(x)` behind the last, while the context lasts.

    Hooks are global to a module: hold the handle's lock around it. They are removed whatever happens inside.
    """

    def before(index: int) -> Callable[..., None]:
        return lambda _module, args, kwargs: enters(index, args, kwargs)

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.callback(layer.register_forward_pre_hook(before(index), with_kwargs=True).remove)
        last = layers[-1].register_forward_hook(lambda _module, _args, output: leaves(hidden_output(output)))
        hooks.callback(last.remove)
        yield


@contextmanager
def residual_boundaries(handle: ModelHandle, keep: Callable[[int, Tensor], None]) -> Iterator[nn.Module]:
    """Yield the decoder, without LM head; each forward pass of it calls `keep(i, x)` for every boundary i = 0..L.

    x is the live residual stream, shape (batch, tokens, hidden): copy what you need, the model goes on with it.
    Boundary L is the output of the last layer, before the final norm (the last entry of transformers' `hidden_states`
    is after it). Hooks are global to a module: hold `handle.lock` around the whole context. They are removed on the
    way out, whatever happens inside.
    """
    stack = layer_stack(handle.model)

    def enters(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(index, hidden_argument(index, args, kwargs))

    with hooked_layers(stack.layers, enters, lambda hidden: keep(len(stack.layers), hidden)):
        yield stack.decoder


@contextmanager
def stoppable(handle: ModelHandle, watch: Watch) -> Iterator[None]:
    """Raise Stopped out of a forward pass before its next layer, once asked to stop; hold `handle.lock` around it.

    A window of a slow model takes seconds, and whoever asked for another one should not wait for them.
    """

    def look(_module: nn.Module, _inputs: Any) -> None:
        watch.check("Stopped within a forward pass.")

    with ExitStack() as hooks:
        for layer in layer_stack(handle.model).layers if watch.stop is not None else ():
            hooks.callback(layer.register_forward_pre_hook(look).remove)
        yield
