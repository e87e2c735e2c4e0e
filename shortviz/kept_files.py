"""Streamlit's own scripts and styles, answered from memory where the app is hosted: an ASGI middleware.

A first visit asks for some sixty of them, 2.1 MB. Streamlit 1.67 opens and reads each anew through a thread pool, which
waits for the interpreter behind the pages that are being made for others, and sends it uncompressed.
"""

import asyncio
import gzip
import mimetypes
import re
from collections.abc import Mapping
from pathlib import Path

from shortviz.doorkeeper import App, Message, Receive, Send

PREFIX = "/static/"
"""Where Streamlit serves the files whose names hold a digest of their contents: they never change."""
_TEXT = (".js", ".css")
_YEAR = 31_536_000
_GZIP = re.compile(rb"(?:^|,)\s*gzip\s*(?:;\s*q=(?:1(?:\.0*)?|0?\.\d*[1-9]\d*)\s*)?(?:,|$)", re.IGNORECASE)
"""Takes gzip; not with q=0."""


class KeptFiles:
    """Compresses each script and style once, when it is first asked for, and answers everything else by the app."""

    def __init__(self, app: App, folder: Path) -> None:
        """Serve the files that lie below `folder` now; no other path is ever looked for."""
        self.app = app
        self._files: Mapping[str, Path] = {
            PREFIX + path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix in _TEXT
        }
        self._kept: dict[str, asyncio.Task[bytes]] = {}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a plain request of a browser that takes gzip; ranges and the rest are the app's."""
        path = self._files.get(scope.get("path", "")) if _is_plain_request(scope) else None
        if path is None:
            await self.app(scope, receive, send)
            return
        body = await self._body(scope["path"], path)
        headers = {
            "content-type": f"{mimetypes.guess_type(path.name)[0]}; charset=utf-8",
            "content-encoding": "gzip",
            "content-length": str(len(body)),
            "cache-control": f"public, immutable, max-age={_YEAR}",
            "vary": "accept-encoding",
        }
        sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": sent})
        await send({"type": "http.response.body", "body": body})

    async def _body(self, key: str, path: Path) -> bytes:
        """Return the compressed file; those who ask while it is compressed wait for the same."""
        task = self._kept.get(key)
        if task is None:
            task = self._kept[key] = asyncio.create_task(asyncio.to_thread(_compressed, path))
        try:
            return await asyncio.shield(task)  # a browser that goes away takes nothing from the others
        except OSError:
            self._kept.pop(key, None)
            raise


def _is_plain_request(scope: Message) -> bool:
    if scope["type"] != "http" or scope["method"] != "GET":
        return False
    headers = dict(scope["headers"])
    return b"range" not in headers and _GZIP.search(headers.get(b"accept-encoding", b"")) is not None


def _compressed(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), mtime=0)
