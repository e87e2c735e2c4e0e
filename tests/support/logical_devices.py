"""Two logical devices on one CPU, for models spread over several: real numbers, and torch's own refusal to mix devices.

A tensor of a logical device is an ordinary CPU tensor behind a wrapper that says `fpga:0` or `fpga:1` (a device type
that torch knows and no build of it has). An operation on tensors of two devices raises, as it would on two GPUs; only
copies cross, and tensors without dimensions and indices may come from the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

KIND = "fpga"
_aten = torch.ops.aten
_CROSSING = {_aten.copy_.default, _aten._to_copy.default, _aten.to.device, _aten.to.dtype_layout}
_TO_PYTHON = {"__float__", "__int__", "__bool__", "__index__", "item", "tolist"}
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default}


class LogicalTensor(torch.Tensor):
    """A CPU tensor that is said to be on another device."""

    behind: torch.Tensor

    @staticmethod
    def __new__(cls, behind: torch.Tensor, where: torch.device) -> "LogicalTensor":
        """Wrap a CPU tensor."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            behind.size(),
            strides=behind.stride(),
            storage_offset=behind.storage_offset(),
            dtype=behind.dtype,
            device=where,
        )
        made.behind = behind
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        """Return the address of the numbers."""
        return self.behind.data_ptr()

    def numpy(self, **_options: Any) -> Any:
        """Refuse, as a GPU's tensor does."""
        raise TypeError(f"can't convert {self.device} tensor to numpy; use .cpu() first")

    def __repr__(self, **_options: Any) -> str:
        return f"LogicalTensor({self.behind}, {self.device})"


class _Devices(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _InCpp(TorchFunctionMode):
    """What torch does in C++ before it dispatches: literals are made and brackets enter the tensor's device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "__getitem__" and isinstance(args[0], LogicalTensor):
            return LogicalTensor(args[0].behind[tree_map(_plain, args[1])], args[0].device)
        if name == "__setitem__" and any(isinstance(leaf, LogicalTensor) for leaf in tree_leaves(args)):
            _plain(args[0])[tree_map(_plain, args[1])] = _plain(args[2])
            return None
        if name == "copy_":
            _plain(args[0]).copy_(_plain(args[1]))
            return args[0]
        if name in _TO_PYTHON and isinstance(args[0], LogicalTensor):
            return func(args[0].behind)
        if name in ("nonzero", "__invert__") and isinstance(args[0], LogicalTensor):
            return LogicalTensor(func(args[0].behind), args[0].device)
        if name == "contiguous" and isinstance(args[0], LogicalTensor):
            return args[0] if args[0].is_contiguous() else args[0].clone(memory_format=torch.contiguous_format)
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == KIND:
            return func(*args, **(kwargs | {"device": "cpu"})).to(device)
        return func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation on the numbers; the result is where its arguments are, or where it was asked for."""
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    asked = next((v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.device)), None)
    if not any(isinstance(leaf, LogicalTensor) for leaf in leaves) and (asked is None or asked.type != KIND):
        return func(*args, **kwargs)
    where = asked or (leaves[0].device if func in _CROSSING else _one_device(func, leaves))

    plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
    known = {id(_plain(leaf)): leaf for leaf in leaves}
    found = func(*plain_args, **plain_kwargs)
    copied = func in _CROSSING and func is not _aten.copy_.default

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        same = known.get(id(value))
        if same is not None and same.device == where:
            return same
        if where.type != KIND:
            return value.clone() if copied and same is not None else value
        return LogicalTensor(value.clone() if copied and same is not None else value, where)

    return tree_map(wrapped, found)


def _plain(value: Any) -> Any:
    if isinstance(value, LogicalTensor):
        return value.behind
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _one_device(func: Any, leaves: list[torch.Tensor]) -> torch.device:
    indices = leaves[1:] if func in _INDEXING else []
    free = [
        leaf for leaf in leaves if leaf.device.type == "cpu" and (leaf.ndim == 0 or any(leaf is i for i in indices))
    ]
    devices = {leaf.device for leaf in leaves if not any(leaf is one for one in free)}
    if len(devices) > 1:
        found = ", ".join(sorted(map(str, devices)))
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {found}.")
    return next(iter(devices), torch.device("cpu"))


@contextmanager
def logical_devices() -> Iterator[tuple[torch.device, torch.device]]:
    """Yield two devices that this thread can put tensors on, as long as the context lasts."""
    with _InCpp(), _Devices():
        yield torch.device(KIND, 0), torch.device(KIND, 1)
