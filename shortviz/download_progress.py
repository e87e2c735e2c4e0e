"""Counts the bytes that huggingface_hub downloads, in place of its progress bars."""

import threading
from dataclasses import dataclass, field
from typing import Any, ClassVar

from shortviz.progress import Watch


@dataclass
class _Counter:
    """Bytes of all files of one download together."""

    total: int
    watch: Watch
    done: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def add(self, num_bytes: int) -> None:
        """Count, tell, and raise Stopped where the person asked to stop."""
        with self.lock:
            self.done += num_bytes
            now = min(self.done, self.total)
        self.watch.tell("download", done=now, total=self.total, unit="bytes")
        self.watch.check("The download was stopped; what has arrived is kept.")


class _Bar:
    """Stands in for tqdm, as far as huggingface_hub 2.4 calls it; draws nothing."""

    counter: ClassVar[_Counter]

    def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
        self.n, self.total = 0, self.counter.total
        self.update(initial)

    def update(self, n: float | None = 1) -> None:
        self.counter.add(int(n or 0))

    def update_transfer(self, n: float | None = 1) -> None:
        """Bytes on the wire: they are counted by `update` once they are on the disk."""

    def set_postfix_str(self, *_: Any, **__: Any) -> None: ...

    def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None: ...

    def refresh(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None: ...


def counting_bar(total: int, watch: Watch) -> type[Any]:
    """Return a class for huggingface_hub's `tqdm_class` that reports the bytes of all its bars together."""
    return type("CountingBar", (_Bar,), {"counter": _Counter(total, watch)})
