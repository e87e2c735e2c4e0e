"""A small real hub on the loopback interface: it answers as huggingface.co does, from folders of models and data sets.

    with hub_server({"org/tiny": folder}, datasets={"org/rows": folder}) as hub:
        subprocess.run(..., env={**os.environ, **hub.environment(tmp_path)})

huggingface_hub reads HF_ENDPOINT when it is imported, so the code under test runs in a process of its own.
`failures` says how a repository misbehaves: `gated`, `private`, `cut` (the first download of each weight file breaks
off half-way), or an HTTP status such as 429 or 500 for every request about it.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_API = re.compile(r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+(?:/[^/]+)?)")
_RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_ACTIONS = re.compile(r"(?P<repo>.+?)/(?P<action>revision|tree|paths-info)/(?P<revision>[^/]+)/?(?P<path>.*)")
_CHUNK = 1 << 16


@dataclass
class Hub:
    """What the server serves, how it fails, and what it was asked."""

    url: str = ""
    models: dict[str, Path] = field(default_factory=dict)
    datasets: dict[str, Path] = field(default_factory=dict)
    failures: dict[str, int | str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """`METHOD path` of every request, in order."""
    cut: set[str] = field(default_factory=set)

    def environment(self, home: Path) -> dict[str, str]:
        """Environment variables for a process that takes this server for the hub, with its cache in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def repos(self, kind: str) -> dict[str, Path]:
        return self.datasets if kind.startswith("datasets") else self.models

    def commit(self, repo: str, kind: str = "models") -> str:
        """The commit of a repository: it follows the names and sizes of its files."""
        listing = json.dumps([(path, size) for path, size in files_of(self.repos(kind)[repo]).items()])
        return hashlib.sha1(listing.encode()).hexdigest()


def files_of(folder: Path) -> dict[str, int]:
    """Sizes of the files of a repository by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


@contextmanager
def hub_server(
    models: Mapping[str, Path],
    *,
    datasets: Mapping[str, Path] | None = None,
    failures: Mapping[str, int | str] | None = None,
) -> Iterator[Hub]:
    """Serve these repositories on a free port of 127.0.0.1 until the block ends."""
    hub = Hub(models=dict(models), datasets=dict(datasets or {}), failures=dict(failures or {}))
    with serving(_Handler, hub):
        yield hub


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], hub: Any) -> Iterator[None]:
    """Let a handler with this hub answer on a free port of 127.0.0.1; the hub's `url` says which."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def end_headers(self) -> None:
        self.send_header("Connection", "close")  # so that a stopped server is silent at once
        self.close_connection = True
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        return

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if found := _RESOLVE.fullmatch(path):
            self._resolve(found["kind"] or "models", found["repo"], found["revision"], found["file"])
        elif path.startswith("/api/") and (action := _ACTIONS.fullmatch(path.removeprefix("/api/"))):
            kind, _, repo = action["repo"].partition("/")
            self._api(kind, repo, action["revision"], action["action"], action["path"], body)
        elif found := _API.fullmatch(path):
            self._api(found["kind"], found["repo"], "main", "revision", "", body)
        else:
            self._error(404, "", "Not found")

    def _refused(self, kind: str, repo: str, revision: str, *, file: bool) -> bool:
        """Answer with the error that this repository is to give, or that it has earned; True where one was given."""
        failure = self.hub.failures.get(repo)
        if isinstance(failure, int):
            self._error(failure, "", "Made to fail")
        elif repo not in self.hub.repos(kind) or failure == "private":
            self._error(401, "RepoNotFound", "Repository not found")
        elif failure == "gated" and file:
            self._error(403, "GatedRepo", f"Access to model {repo} is restricted")
        elif revision not in ("main", "refs/convert/parquet", self.hub.commit(repo, kind)):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return False
        return True

    def _api(self, kind: str, repo: str, revision: str, action: str, path: str, body: bytes) -> None:
        if self._refused(kind, repo, revision, file=False):
            return
        files = files_of(self.hub.repos(kind)[repo])
        if action == "revision":
            siblings = [{"rfilename": name, "size": size, "blobId": _oid(name)} for name, size in files.items()]
            gated = "manual" if self.hub.failures.get(repo) == "gated" else False
            facts = {"_id": _oid(repo), "id": repo, "modelId": repo, "sha": self.hub.commit(repo, kind)}
            self._json({**facts, "private": False, "gated": gated, "disabled": False, "tags": [], "siblings": siblings})
            return
        wanted = json.loads(body).get("paths") if body.startswith(b"{") else None
        self._json(_entries(files, path.strip("/"), wanted))

    def _resolve(self, kind: str, repo: str, revision: str, name: str) -> None:
        if self._refused(kind, repo, revision, file=True):
            return
        path = self.hub.repos(kind)[repo] / name
        if name not in files_of(self.hub.repos(kind)[repo]):
            self._error(404, "EntryNotFound", "Entry not found", commit=self.hub.commit(repo, kind))
            return
        size = path.stat().st_size
        start, end, partial = _range(self.headers.get("Range"), size)
        self.send_response(206 if partial else 200)
        self.send_header("ETag", f'"{_oid(f"{repo}/{name}/{size}/{path.stat().st_mtime_ns}")}"')
        self.send_header("X-Repo-Commit", self.hub.commit(repo, kind))
        self.send_header("X-Linked-Size", str(size))
        self.send_header("Accept-Ranges", "bytes")
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            whole = not partial and name.endswith(".safetensors")
            self._send_file(path, start, self._cut(f"{repo}/{name}", start, end) if whole else end)

    def _cut(self, name: str, start: int, end: int) -> int:
        """Return where the first download of a file of a `cut` repository breaks off."""
        if self.hub.failures.get(name.rpartition("/")[0]) != "cut" or name in self.hub.cut:
            return end
        self.hub.cut.add(name)
        self.close_connection = True
        return (start + end) // 2

    def _send_file(self, path: Path, start: int, end: int) -> None:
        with path.open("rb") as file:
            file.seek(start)
            while start < end and (chunk := file.read(min(_CHUNK, end - start))):
                try:
                    self.wfile.write(chunk)
                except OSError:  # the client has heard enough
                    self.close_connection = True
                    return
                start += len(chunk)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str, commit: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        headers |= {"X-Repo-Commit": commit} if commit else {}
        self._send(status, json.dumps({"error": message}).encode(), {**headers, "Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entries(files: Mapping[str, int], under: str, wanted: list[str] | None) -> list[dict[str, Any]]:
    """Return the tree entries of the files below a folder, or of the wanted paths only."""
    folders = {parent.as_posix() for name in files for parent in Path(name).parents} - {"."}
    entries = [{"type": "directory", "path": name, "size": 0, "oid": _oid(name)} for name in sorted(folders)]
    entries += [{"type": "file", "path": name, "size": size, "oid": _oid(name)} for name, size in files.items()]
    if wanted is not None:
        return [entry for entry in entries if entry["path"] in wanted]
    return [entry for entry in entries if not under or str(entry["path"]).startswith(f"{under}/")]


def _range(header: str | None, size: int) -> tuple[int, int, bool]:
    """Return (start, end, partial) of a Range header."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", header or "")
    if not found:
        return 0, size, False
    return min(int(found[1]), size), min(int(found[2]) + 1 if found[2] else size, size), True


def _oid(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()
