"""A treated model as a file: the few weights that are its own, and what was done. The rest is the uncut model's."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from shortviz.errors import RunError
from shortviz.files import write_atomically
from shortviz.model.handle import ModelHandle
from shortviz.model.prune import prune, put_weights, shared_copy
from shortviz.records.json import Floats, from_plain, plain
from shortviz.records.ledger import Treatment
from shortviz.records.model import ModelInfo, ModelRef
from shortviz.records.plan import PrunePlan

if TYPE_CHECKING:
    from shortviz.streaming.model import StreamedModel

# Checkpoints of a long measurement: one .npz beside the run, tied to what is being measured.


def model_facts(handle: "ModelHandle | StreamedModel") -> list[object]:
    """Return what tells one model from another, for the key of a checkpoint: weights retrained in place included."""
    return facts_of(handle.info, handle.ref, handle.plan.removed if handle.plan else ())


def facts_of(info: ModelInfo, ref: ModelRef, removed: tuple[int, ...] = ()) -> list[object]:
    """Return the same of a model that need not be loaded."""
    place = Path(ref.id)
    weights = sorted(place.glob("*.safetensors")) if place.is_dir() else [place] if place.is_file() else []
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights]
    return [info.id, info.revision, info.dtype, info.device, info.parameters, removed, stamps]


def checkpoint_key(kind: object, handle: "ModelHandle | StreamedModel", *facts: object) -> str:
    """Return a fingerprint of everything that what a checkpoint holds depends on."""
    return hashlib.sha256(json.dumps([kind, *model_facts(handle), *facts]).encode()).hexdigest()


def save_checkpoint(path: Path, key: str, arrays: Mapping[str, Floats]) -> None:
    """Write the arrays under `key`; a kill at any moment leaves the old file or the new one.

    Raises ResourceError where the disk will not take it.
    """
    named: dict[str, Any] = dict(arrays) | {"__key__": np.array(key)}
    write_atomically(path, lambda file: np.savez(file, **named))


def discard_checkpoint(path: Path) -> None:
    """Remove a checkpoint and what lies beside it under the same name: the measurement is complete."""
    for file in path.parent.glob(f"{path.stem}.*"):
        if not file.suffix.startswith(".lock"):  # held while the measurement runs
            file.unlink(missing_ok=True)


def load_checkpoint(path: Path, key: str) -> dict[str, Floats] | None:
    """Return the arrays saved under `key`, or None where there is no checkpoint.

    Raises RunError where the file belongs to another measurement or cannot be read.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise RunError(f"The checkpoint {path} cannot be read ({error}); delete it to start again.") from error
    found = str(arrays.pop("__key__", ""))
    if found != key:
        raise RunError(
            f"The checkpoint {path} belongs to another measurement (model, text or settings differ); "
            "delete it to start again."
        )
    return arrays


def delta_weights(handle: ModelHandle, base: ModelHandle) -> dict[str, Tensor]:
    """Return the weights of a treated model that are not the uncut model's very tensors, by name."""
    shared = {weight.data_ptr() for weight in base.model.parameters()}
    return {name: weight for name, weight in handle.model.named_parameters() if weight.data_ptr() not in shared}


def save_treated(path: Path, handle: ModelHandle, base: ModelHandle, facts: Mapping[str, Any]) -> None:
    """Write what is a treated model's own; a kill at any moment leaves the old file or the new one.

    `facts` say what it is beside its model; they are given back. Raises ResourceError where the disk will not take it.
    """
    metadata = {
        "model": _identity(base),
        "removed": list(handle.removed),
        "treatments": plain(handle.treatments),
        "facts": facts,
    }
    write_tensors(path, delta_weights(handle, base), metadata)


def load_treated(path: Path, base: ModelHandle) -> tuple[ModelHandle, dict[str, Any]] | None:
    """Return the treated model of a file on the tensors of its uncut one, and its facts; None where there is no file.

    Raises RunError where the file cannot be read or belongs to another model.
    """
    read = read_tensors(path, ("model", "removed", "treatments", "facts"))
    if read is None:
        return None
    tensors, found = read
    treatments = tuple(from_plain(Treatment, each) for each in found["treatments"])
    removed, model = tuple(found["removed"]), found["model"]
    if model != _identity(base):
        raise RunError(
            f"{path} belongs to {model.get('id')} ({model.get('dtype')}), or to other weights than {base.info.id} "
            f"({base.info.dtype}) has; load that model, or delete the file to start again."
        )
    handle = prune(base, PrunePlan(num_layers=base.info.num_layers, removed=removed)) if removed else shared_copy(base)
    put_weights(handle.model, tensors)
    return replace(handle, treatments=treatments), dict(found["facts"])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors, and what is to be known of them, as one safetensors file that replaces an older one whole.

    Raises ResourceError where the disk will not take it.
    """
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(own, {name: json.dumps(value) for name, value in metadata.items()})
    write_atomically(path, lambda file: file.write(data))


def read_tensors(path: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the tensors of a file of `write_tensors` and its metadata, which has these names; None where none is.

    Raises RunError where the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            found = file.metadata() or {}
            metadata = {name: json.loads(found[name]) for name in names}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118  # not a mapping
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read ({error}); delete it to start again.") from error


def refuse_other_work(work: str, saved: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Raise RunError where a checkpoint's facts are not those of the work that is to go on, listing the differences."""
    differs = [name for name in {**saved, **facts} if saved.get(name) != facts.get(name)]
    if differs:
        shown = "; ".join(f"{name} was {_short(saved.get(name))} and is {_short(facts.get(name))}" for name in differs)
        raise RunError(
            f"{work} was begun otherwise: {shown}; give what it was begun with, or delete the file to start again."
        )


def _short(value: Any) -> str:
    text = "not given" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _identity(base: ModelHandle) -> dict[str, Any]:
    info = base.info
    return {"id": info.id, "revision": info.revision, "dtype": info.dtype, "weights": weights_digest(base.model)}


@torch.no_grad()
def weights_digest(model: PreTrainedModel) -> str:
    """Return a SHA-256 over the name, the shape and a sample of each weight: enough to tell two models apart."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().reshape(-1)
        places = torch.linspace(0, len(flat) - 1, min(64, len(flat)), dtype=torch.float64).long().to(flat.device)
        sample = flat[places].double().cpu().numpy().astype("<f8")
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(np.ascontiguousarray(sample).tobytes())
    return digest.hexdigest()
