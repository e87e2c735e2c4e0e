"""Training after a cut: the text, what is trained and towards what, checkpoints, the adapter alone.

The room can be called: `shortviz.heal(...)` is `shortviz.heal.heal.heal(...)`.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A public function and its room share a name: importing the room must not hide the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from shortviz.heal.heal import heal

        return heal(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
