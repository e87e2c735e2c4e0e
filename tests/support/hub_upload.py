"""The writing half of a hub on loopback: repositories, LFS objects, commits, as huggingface_hub speaks them.

    with upload_server(token="hf_x") as hub:
        push_folder(folder, Destination(repo_id="me/x", token="hf_x", endpoint=hub.url))

`failures` says which step answers with which HTTP status: `create`, `preupload`, `batch`, `commit`, or `put:N` for the
N-th upload of a file's content (from 1); the status "cut" closes the connection half-way. `garbled` says which step,
or `whoami`, answers 200 with a body that is not what was asked for.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.hub_server import serving

_COMMIT = "c" * 40


@dataclass
class UploadHub:
    """What was pushed, how the server fails, and what it was asked."""

    token: str
    user: str = "me"
    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """LFS content by its SHA-256."""
    failures: dict[str, int | str] = field(default_factory=dict)
    garbled: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    puts: int = 0


@contextmanager
def upload_server(token: str) -> Iterator[UploadHub]:
    """Serve an empty hub on a free port of 127.0.0.1 until the block ends."""
    hub = UploadHub(token=token)
    with serving(_Handler, hub):
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: UploadHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return

    def end_headers(self) -> None:
        self.send_header("Connection", "close")
        self.close_connection = True
        super().end_headers()

    def do_PUT(self) -> None:
        self.hub.puts += 1
        failure = self.hub.failures.get(f"put:{self.hub.puts}")
        length = int(self.headers.get("Content-Length") or 0)
        if failure == "cut":
            self.rfile.read(length // 2)
            self.connection.close()
            return
        body = self.rfile.read(length) if length else self._chunks()
        self.hub.requests.append(f"PUT {len(body)}")
        if failure:
            self._json({"error": "Made to fail"}, int(failure))
            return
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self._json({})

    def do_GET(self) -> None:
        path = self._noted()
        if not self._known():
            return
        if path == "/api/whoami-v2" and "whoami" in self.hub.garbled:
            self._body(self.hub.garbled["whoami"])
        elif path == "/api/whoami-v2":
            self._json({"name": self.hub.user, "type": "user", "auth": {}})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?", path):
            files = self.hub.repositories[found[1]]
            siblings = [{"rfilename": name} for name in files]
            self._json({"_id": "1", "id": found[1], "modelId": found[1], "siblings": siblings, "tags": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/main/?", path):
            files = self.hub.repositories[found[1]]
            self._json([{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()])
        else:
            self._json({"error": "Not found"}, 404)

    def do_POST(self) -> None:
        path = self._noted()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif not self._known():
            return
        elif path == "/api/repos/create":
            self._step("create", lambda: self._create(json.loads(body)))
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            self._step("preupload", lambda: self._modes(json.loads(body)))
        elif re.fullmatch(r"/.+\.git/info/lfs/objects/batch", path):
            self._step("batch", lambda: self._batch(json.loads(body)))
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self._step("commit", lambda: self._commit(found[1], body))
        else:
            self._json({"error": "Not found"}, 404)

    def _noted(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _known(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return True
        self._json({"error": "Invalid credentials"}, 401)
        return False

    def _step(self, name: str, answer: Any) -> None:
        failure = self.hub.failures.get(name)
        if failure:
            self._json({"error": "Made to fail"}, int(failure))
        elif name in self.hub.garbled:
            self._body(self.hub.garbled[name])
        else:
            answer()

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        if repo in self.hub.repositories:
            self._json({"error": "You already created this model repo"}, 409)
        else:
            self.hub.repositories[repo] = {".gitattributes": b""}
            self.hub.private[repo] = asked.get("visibility") == "private"
            self._json({"url": f"{self.hub.url}/{repo}", "name": repo, "id": "1"})

    def _modes(self, asked: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".bin")) else "regular",
                "shouldIgnore": False,
            }
            for file in asked["files"]
        ]
        self._json({"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            entry: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/storage/{one['oid']}"}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, body: bytes) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.repositories[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.repositories[repo][value["path"]] = self.hub.objects[value["oid"]]
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{_COMMIT}", "commitOid": _COMMIT, "hookOutput": ""})

    def _chunks(self) -> bytes:
        """Return a body that came in chunks."""
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, value: Any, status: int = 200) -> None:
        self._body(json.dumps(value).encode(), status)

    def _body(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
