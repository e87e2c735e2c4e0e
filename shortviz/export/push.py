"""Push a proved checkpoint to the Hugging Face hub, file by file, in one commit at the end. No torch.

A folder is pushed only where its shortviz.json says that it was proved and every file still is the one that was. The
token is used for these requests and kept nowhere: not in a record, a message, a log line or the cache of the hub.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from shortviz.errors import ExportError, ResourceError, ShortvizError
from shortviz.export.folder import RECORD, fingerprints
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.formatting import duration, size

_REPOSITORY = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*(?<![.-])")
_NOT_A_TOKEN = re.compile(r"[^\x21-\x7e]")
_STOPPED = "The push was stopped; the repository is as it was, and what has arrived is not sent again."
_MALFORMED = (LookupError, TypeError, AttributeError, ValueError)
"""What the hub's client raises over an answer without the parts it needs, or one that is not JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Destination:
    """Where a checkpoint goes, and in whose name."""

    repo_id: str
    """`user/name`; without a user, the token's own."""
    token: str = field(repr=False)
    """A token with write access; never shown."""
    private: bool = True
    endpoint: str | None = None
    """The hub's address; None is the usual one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PushReport:
    """What was pushed."""

    repo_id: str
    url: str
    commit: str
    files: int
    bytes: int
    seconds: float


def push_folder(folder: Path, to: Destination, *, watch: Watch = NO_WATCH) -> PushReport:
    """Push an exported folder and return the report; the repository changes in one commit, at the end.

    Progress has the stages `check` and `upload` (bytes, after every file). What has arrived before a failure or a stop
    is not sent again by the next push.

    Raises:
        ExportError: the folder is not a proved checkpoint, the name or token is refused, or the repository is taken.
        ResourceError: the hub does not answer, or not now.
        Stopped: a stop was asked for.
    """
    started = time.perf_counter()
    target = check_destination(to)
    folder = Path(folder)
    names = check_proved(folder, watch)
    api = HfApi(endpoint=to.endpoint, token=to.token)
    with push_errors(target):
        repo_id = _make_repository(api, target)
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
        total, done = sum((folder / name).stat().st_size for name in names), 0
        for operation in operations:
            watch.check(_STOPPED)
            _report(watch, done, total, operation.path_in_repo)
            api.preupload_lfs_files(repo_id, [operation])
            done += operation.upload_info.size
        watch.check(_STOPPED)
        _report(watch, done, total, "the commit")
        commit = api.create_commit(repo_id, operations, commit_message="Pruned with shortviz, proved equal on reload")
    _report(watch, total, total, "")
    return PushReport(
        repo_id=repo_id,
        url=f"{to.endpoint or constants.ENDPOINT}/{repo_id}",
        commit=str(commit.oid),
        files=len(names),
        bytes=total,
        seconds=time.perf_counter() - started,
    )


def check_destination(to: Destination) -> Destination:
    """Return the destination without blanks around its parts; raises ExportError where they cannot be right."""
    name, token = to.repo_id.strip(), to.token.strip()
    if not _REPOSITORY.fullmatch(name) or len(name) > 96 or "--" in name or ".." in name:
        raise ExportError(
            f"{name[:100]!r} cannot be the name of a repository; give user/name, of letters, digits, '-', '_' and '.'."
        )
    if not token:
        raise ExportError("There is no token; make one with write access in your account's settings on the hub.")
    if _NOT_A_TOKEN.search(token):
        raise ExportError("The token holds characters that no token has; copy it again.")
    return replace(to, repo_id=name, token=token)


def check_proved(folder: Path, watch: Watch = NO_WATCH) -> tuple[str, ...]:
    """Return the files of a checkpoint that was proved and has not changed since, shortviz.json among them.

    Raises ExportError where it is something else, naming the first file that differs.
    """
    record = _read_record(folder)
    wanted, proof = record.get("files"), record.get("proof")
    proof = proof if isinstance(proof, dict) else {}
    generated, streamed = proof.get("generation_equal"), proof.get("kind") in ("streamed", "bytes")
    # One too large for a fresh process was proved layer by layer, and did not generate.
    if not isinstance(wanted, dict) or not (generated is True or (generated is None and streamed)):
        raise ExportError(f"{folder} holds no proof that it was reloaded and found equal; export it again.")
    watch.tell("check", done=0, total=1, unit="steps", detail="fingerprints of all files")
    found = fingerprints(folder)
    found.pop(RECORD, None)
    changed = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if changed:
        raise ExportError(
            f"{folder} is not what was proved: {changed[0]} was changed, added or removed since; export it again."
        )
    return (*sorted(found), RECORD)


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{folder} is no checkpoint that shortviz proved (it has no readable {RECORD}); export it first."
        ) from error
    if not isinstance(record, dict):
        raise ExportError(f"{folder / RECORD} is not a record of shortviz; export the checkpoint again.")
    return record


def _make_repository(api: HfApi, to: Destination) -> str:
    """Return the full name of the repository: new, empty, or one that an earlier push made."""
    try:
        return str(api.create_repo(to.repo_id, private=to.private).repo_id)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
    repo_id = to.repo_id if "/" in to.repo_id else f"{api.whoami()['name']}/{to.repo_id}"
    files = set(api.list_repo_files(repo_id))
    if files - {".gitattributes"} and RECORD not in files:
        raise ExportError(
            f"The repository {repo_id} is there already (HTTP 409) and holds something else; choose another name."
        )
    return repo_id


@contextmanager
def push_errors(to: Destination) -> Iterator[None]:
    """Turn the hub's errors into one sentence each; none of them ever holds the token."""
    try:
        yield
    except ShortvizError:
        raise
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, *_MALFORMED) as error:
        hidden = any(to.token in str(cause) for cause in _causes(error))
        raise _told(error, to) from None if hidden else error


def _told(error: BaseException, to: Destination) -> ShortvizError:
    chain = list(_causes(error))
    answered = next((e for e in chain if isinstance(e, HfHubHTTPError)), None)
    if answered is not None:
        return _told_status(answered.response.status_code, to)
    if any(isinstance(e, httpx2.TransportError | ConnectionError) for e in chain):
        return ResourceError(
            f"The connection to {to.endpoint or constants.ENDPOINT} broke off while {to.repo_id} was being pushed; "
            "push again: what has arrived is not sent a second time."
        )
    garbled = next((e for e in chain if isinstance(e, _MALFORMED) and not isinstance(e, HFValidationError)), None)
    if garbled is not None and not isinstance(error, OSError):
        return ResourceError(
            f"{to.endpoint or constants.ENDPOINT} answered with something that is not a hub's "
            f"({type(garbled).__name__}) while {to.repo_id} was being pushed; check that address, and whether a proxy "
            "or a sign-in page stands before it, then push again."
        )
    last = chain[-1]  # where it began; what came after only says that uploading failed
    said = next(iter(str(last).strip().splitlines()), type(last).__name__).replace(to.token, "***")
    return ExportError(f"Pushing {to.repo_id} failed ({said[:200]}); push again, or upload the folder by hand.")


def _told_status(code: int, to: Destination) -> ShortvizError:
    site = constants.ENDPOINT
    sentences = {
        401: f"The hub does not know this token (HTTP 401); make one with write access at {site}/settings/tokens.",
        402: f"The hub asks for payment to store {to.repo_id} (HTTP 402); see your plan, or make it public.",
        403: f"This token may not write to {to.repo_id} (HTTP 403); use one with write access there, or your own name.",
        404: f"The hub has no place for {to.repo_id} (HTTP 404); check the user or organisation before the slash.",
        409: f"{to.repo_id} was changed by somebody else meanwhile (HTTP 409); push again.",
        413: f"The hub finds a file of {to.repo_id} too large (HTTP 413); export in a shorter precision.",
    }
    if code in sentences:
        return ExportError(sentences[code])
    if code == 429:
        return ResourceError(
            "The hub is receiving too many requests from this token (HTTP 429); wait a few minutes and push again: "
            "what has arrived is not sent a second time."
        )
    return ResourceError(
        f"The hub answered with an error (HTTP {code}) while {to.repo_id} was being pushed; push again later: what has "
        "arrived is not sent a second time."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _report(watch: Watch, done: int, total: int, detail: str) -> None:
    watch.tell("upload", done=done, total=total, unit="bytes", detail=detail)


def push_text(report: PushReport) -> str:
    """Return what was pushed, in words."""
    return (
        f"Pushed {report.files} files ({size(report.bytes)}) to {report.url} in {duration(report.seconds)}, "
        f"commit {report.commit[:12]}."
    )
