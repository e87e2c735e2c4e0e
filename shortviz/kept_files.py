"""Streamlit's own scripts and styles, answered from memory where the app is hosted: an ASGI middleware.

A first visit asks for some sixty of them, 2.1 MB. Streamlit 1.67 opens and reads each anew through a thread pool, which
waits for the interpreter behind the pages that are being made for others, and sends it uncompressed.
"""

import asyncio
import gzip
import mimetypes
from collections.abc import Mapping
from pathlib import Path

from shortviz.doorkeeper import App, Message, Receive, Send

PREFIX = "/static/"
"""Where Streamlit serves the files whose names hold a digest of their contents: they never change."""
_TEXT = (".js", ".css")
_YEAR = 31_536_000


class KeptFiles:
    """Compresses each script and style once, when it is first asked for, and answers everything else by the app."""

    def __init__(self, app: App, folder: Path) -> None:
        """Serve the files that lie below `folder` now; no other path is ever looked for."""
        self.app = app
        self._files: Mapping[str, Path] = {
            PREFIX + path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix in _TEXT
        }
        self._kept: dict[str, bytes] = {}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a plain request of a browser that takes gzip; ranges and the rest are the app's."""
        path = self._files.get(scope.get("path", "")) if _is_plain_request(scope) else None
        if path is None:
            await self.app(scope, receive, send)
            return
        body = self._kept.get(scope["path"])
        if body is None:
            body = self._kept[scope["path"]] = await asyncio.to_thread(_compressed, path)
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


def _is_plain_request(scope: Message) -> bool:
    if scope["type"] != "http" or scope["method"] != "GET":
        return False
    headers = dict(scope["headers"])
    return b"range" not in headers and b"gzip" in headers.get(b"accept-encoding", b"")


def _compressed(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), mtime=0)
