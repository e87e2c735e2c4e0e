"""What the modules of one layer read and give on a short input, seen through hooks."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from shortviz.replay import LayerCall

Seen = tuple[nn.Module, Tensor, Tensor]
"""A module, its first argument and what it gave."""


def watch(layer: nn.Module, call: LayerCall, entering: Tensor) -> dict[str, Seen]:
    """Return name -> what was seen of each module without children that runs once, in the order of running."""
    calls: dict[str, list[Seen]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                calls.setdefault(name, []).append((module, args[0].clone(), output.clone()))

        return hook

    with ExitStack() as hooks:
        for name, module in layer.named_modules():
            if name and next(module.children(), None) is None:
                hooks.callback(module.register_forward_hook(keep(name)).remove)
        call.run(layer, entering.clone())
    return {name: found[0] for name, found in calls.items() if len(found) == 1}
