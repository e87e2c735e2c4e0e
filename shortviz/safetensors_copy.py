"""Writing safetensors files out of other ones, bytes for bytes: no tensor is ever made. No torch.

The files are laid out as the safetensors library lays them out, so that the same tensors give the same bytes.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from shortviz.errors import ModelError
from shortviz.model_files import INDEX, WEIGHTS
from shortviz.shards import Entry

_CHUNK = 16 * 1024 * 1024
_ORDER = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E4M3", "F8_E8M0", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "F6_E3M2", "F6_E2M3", "F4", "BOOL"),
)
"""Wide dtypes come first, so that every tensor is aligned."""

Written = Callable[[int], None]
"""Called with the bytes just written."""


def shard_layout(tensors: Mapping[str, Entry], shard_bytes: int) -> dict[str, dict[str, Entry]]:
    """Return {file name: tensors}, filled in order up to `shard_bytes`, as transformers does."""
    shards: list[dict[str, Entry]] = []
    current: dict[str, Entry] = {}
    held = 0
    for name, entry in tensors.items():
        if entry.num_bytes > shard_bytes:
            shards.append({name: entry})
            continue
        if held + entry.num_bytes > shard_bytes:
            shards.append(current)
            current, held = {}, 0
        current[name] = entry
        held += entry.num_bytes
    if current:
        shards.append(current)
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    stem = WEIGHTS.removesuffix(".safetensors")
    return {f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards)}


def write_index(folder: Path, layout: Mapping[str, Mapping[str, Entry]], parameters: int) -> None:
    """Write the index of several files; of one file there is none."""
    if len(layout) == 1:
        return
    total = sum(entry.num_bytes for shard in layout.values() for entry in shard.values())
    index = {
        "metadata": {"total_parameters": parameters, "total_size": total},
        "weight_map": {name: file for file, shard in layout.items() for name in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_shard(path: Path, tensors: Mapping[str, Entry], written: Written) -> None:
    """Write one file of tensors that lie in other files; `written` is called after every piece."""
    ordered = sorted(tensors.items(), key=lambda item: (_ORDER.index(item[1].dtype), item[0]))
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    entries: dict[str, object] = dict(header)
    for name, entry in ordered:
        end = offset + entry.num_bytes
        entries[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as target, ExitStack() as files:
        target.write(len(text).to_bytes(8, "little") + text)
        target.flush()
        sources = {f: files.enter_context(f.open("rb")).fileno() for f in {e.file for e in tensors.values()}}
        for _, entry in ordered:
            _copy(sources[entry.file], entry, target.fileno(), written)


def _copy(source: int, entry: Entry, target: int, written: Written) -> None:
    """Copy a tensor's bytes inside the kernel; by hand where it cannot (another kind of disk)."""
    done, by_kernel = 0, hasattr(os, "copy_file_range")
    while done < entry.num_bytes:
        count = min(_CHUNK, entry.num_bytes - done)
        try:
            copied = os.copy_file_range(source, target, count, entry.start + done) if by_kernel else 0
        except OSError:
            copied, by_kernel = 0, False
        if not copied:
            piece = os.pread(source, count, entry.start + done)
            if not piece:  # cut short since its header was read
                raise ModelError(f"The file {entry.file} ends before its last tensor does; fetch it again.")
            copied = os.write(target, piece)
        done += copied
        written(copied)
