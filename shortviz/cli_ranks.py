"""What a command does when a launcher started it several times: one fetches, all compare, one prints and writes."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from shortviz.errors import ModelError
from shortviz.progress import Watch
from shortviz.records import SPREAD

if TYPE_CHECKING:
    from shortviz.ranks import Ranks
    from shortviz.records import ModelRef


def local_size() -> int:
    """Return how many processes of the launch share this machine, and its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def share(ranks: "Ranks | None", ref: "ModelRef", watch: Watch) -> tuple["ModelRef", Watch]:
    """Return (what this process loads, its watch), once the model's files are here and are the same for all.

    Raises ShortvizError where another process has other files.
    """
    if ranks is None:
        return ref, watch
    if ref.device == SPREAD:
        raise ModelError(f"Several processes each take a device of their own, and --device is {SPREAD}; leave it out.")
    from shortviz.loading import prepare
    from shortviz.shards import fingerprint, read_shards

    watch = watch if ranks.writes else Watch(stop=watch.stop)
    if ranks.local_rank == 0:  # the download, or the de-quantised copy, is made once a machine
        prepare(ref, watch=watch)
    ranks.wait()
    folder = prepare(ref)
    ranks.agree({"model files": fingerprint(read_shards(folder, ref.id).values(), folder / "config.json")})
    return replace(ref, device=_own_device(ref.device, ranks.local_rank)), watch


def _own_device(asked: str, local_rank: int) -> str:
    """Return a GPU of its own for each process of a machine, where there are GPUs and none was named."""
    import torch

    if asked not in ("auto", "cuda") or not torch.cuda.is_available():
        return asked
    return f"cuda:{local_rank % torch.cuda.device_count()}"
