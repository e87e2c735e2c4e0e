"""Model repositories on the Hugging Face hub: commit, file list, headers, download; refusals in words for people."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
    RevisionResolutionError,
    SafetensorsParsingError,
)

from shortviz.download_progress import counting_bar
from shortviz.errors import ModelError, ResourceError
from shortviz.progress import Watch

_UNREACHABLE = (httpx2.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError, RevisionResolutionError)


@dataclass(frozen=True, kw_only=True, slots=True)
class HubModel:
    """A model repository at one commit."""

    repo: str
    commit: str
    sizes: Mapping[str, int]
    """Bytes of every file of the repository, by name."""


def look_up(repo: str, revision: str | None) -> HubModel:
    """Return the repository at the commit that the revision means now.

    Raises:
        ModelError: Where there is no such repository or revision, or access to it is refused.
        ResourceError: Where the hub does not answer.
    """
    with hub_errors(repo, revision):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        # Notes in the cache what the branch or tag means now, for cached_commit when there is no network.
        HfApi().resolve_revision(repo, revision=revision)
    files = info.siblings or []
    return HubModel(repo=repo, commit=str(info.sha), sizes={file.rfilename: file.size or 0 for file in files})


def cached_commit(repo: str, revision: str | None) -> str | None:
    """Return the commit of the copy that an earlier download left in the hub's cache, or None."""
    path = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None


def cached_folder(repo: str, commit: str) -> Path:
    """Return the folder of the hub's cache that holds this commit."""
    path = try_to_load_from_cache(repo, "config.json", revision=commit)
    if not isinstance(path, str):
        raise ModelError(f"The model {repo} is not in the local cache of the hub; load it once with a network.")
    return Path(path).parent


def missing_bytes(model: HubModel, names: tuple[str, ...]) -> int:
    """Return the bytes of these files that are not in the hub's cache yet."""
    absent = (n for n in names if not isinstance(try_to_load_from_cache(model.repo, n, revision=model.commit), str))
    return sum(model.sizes.get(name, 0) for name in absent)


def fetch(model: HubModel, name: str) -> Path:
    """Return where a small file of the repository lies in the hub's cache, downloaded if need be."""
    with hub_errors(model.repo, model.commit):
        return Path(hf_hub_download(model.repo, name, revision=model.commit))


def safetensors_parameters(model: HubModel, names: tuple[str, ...]) -> int:
    """Return the number of parameters in these safetensors files, from their headers alone."""
    api = HfApi()

    def count(name: str) -> int:
        header = api.parse_safetensors_file_metadata(model.repo, name, revision=model.commit)
        return sum(header.parameter_count.values())

    with hub_errors(model.repo, model.commit), ThreadPoolExecutor(max_workers=8) as pool:
        return sum(pool.map(count, names))


def download(model: HubModel, names: tuple[str, ...], watch: Watch) -> Path:
    """Download these files and return the folder they lie in; what is in the hub's cache is not fetched again.

    Progress is counted in bytes; `watch.stop` is looked at with every chunk, and a stopped download can be resumed.
    """
    total = missing_bytes(model, names)
    counted = counting_bar(total, watch)
    for name in names:
        watch.check(f"The download of {model.repo} was stopped; what has arrived is kept.")
        with hub_errors(model.repo, model.commit):
            hf_hub_download(model.repo, name, revision=model.commit, tqdm_class=counted)
    return cached_folder(model.repo, model.commit)


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
        raise ModelError(f"The model {repo} lacks a file it needs ({_first_line(error)}); choose another.") from error
    except HfHubHTTPError as error:
        raise _http_error(repo, error) from error
    except SafetensorsParsingError as error:
        raise ModelError(f"A safetensors file of {repo} has a corrupt header; choose another model.") from error
    except OSError as error:
        raise ResourceError(f"Downloading {repo} failed: {_first_line(error)}; try again.") from error


def _http_error(repo: str, error: HfHubHTTPError) -> ModelError | ResourceError:
    code = error.response.status_code
    if code in (401, 403):
        return ModelError(
            f"The hub refuses access to {repo} (HTTP {code}); log in with `hf auth login` as someone who may read it."
        )
    if code == 429:
        return ResourceError(f"The hub is receiving too many requests (HTTP 429 for {repo}); wait a few minutes.")
    return ResourceError(f"The hub answered with an error (HTTP {code} for {repo}); try again later.")


def _first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
