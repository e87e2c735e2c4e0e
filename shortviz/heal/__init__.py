"""Training after a cut: `shortviz.heal(...)` is `shortviz.heal.heal.heal(...)`."""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A public function and its room share a name: importing the room must not hide the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from shortviz.heal.heal import heal

        return heal(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
