"""Who may speak to a hosted server, decided before Streamlit hears anything. An ASGI middleware; imports neither.

It also gives each browser a secret, in a cookie that no script can read: a visitor who reloads is known again by it,
and sees the jobs that they started, which belong to a hash of it. A page inside another site's gets no such cookie.

Streamlit 1.67 checks Host and Origin of WebSockets only, and asks a server on the internet for its own address whenever
a foreign Origin knocks: on the loop that serves everybody, up to two seconds where outgoing traffic is dropped. Its
metrics say to anybody how many sessions there are.
"""

import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

VISITOR = "shortviz_visitor"
"""The cookie's name."""
_SECRET = re.compile(r"[0-9a-f]{32}")
_DAY = 86_400
HIDDEN = ("/_stcore/metrics",)
_NOT_THE_APP = b"This app is not served under that name."


class Doorkeeper:
    """Turns away sessions and uploads for other hosts, sessions of other pages, and what only the owner should read.

    Files are read under any name: probes of a container's port come by its address, and files hold nothing of anybody.
    """

    def __init__(self, app: App, hosts: tuple[str, ...]) -> None:
        """Serve `app` under these host names; () is any name, and a page must then come from the host it speaks to."""
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        reads = kind == "http" and scope["method"] in ("GET", "HEAD")
        if not (reads or self._host_is_ours(headers.get("host", ""))):
            await _refuse(kind, 421, send)  # misdirected request
        elif kind == "websocket" and not self._origin_is_ours(headers.get("origin"), headers.get("host", "")):
            await _refuse(kind, 403, send)
        elif kind == "http" and scope["path"].rstrip("/") in HIDDEN:
            await _refuse(kind, 404, send)
        elif reads and "text/html" in headers.get("accept", "") and not owner_of(_cookie(headers.get("cookie", ""))):
            await self.app(scope, receive, _with_secret(send, _is_secure(scope, headers)))
        else:
            await self.app(scope, receive, send)

    def _host_is_ours(self, host: str) -> bool:
        return not self.hosts or _name(f"//{host}") in self.hosts

    def _origin_is_ours(self, origin: str | None, host: str) -> bool:
        """Return whether a page of this origin may open a session; programs send no origin, browsers always do."""
        return origin is None or _name(origin) in (self.hosts or (_name(f"//{host}"),))


def _name(url: str) -> str:
    """Return the host name of an address, in lower case; "" where it has none or is malformed."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def owner_of(secret: str) -> str:
    """Return the name that jobs of this browser belong to; "" where the cookie holds no secret of ours."""
    return hashlib.sha256(secret.encode()).hexdigest()[:32] if _SECRET.fullmatch(secret) else ""


def _cookie(header: str) -> str:
    """Return the browser's secret from its Cookie header; "" where there is none."""
    try:
        found = SimpleCookie(header).get(VISITOR)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _is_secure(scope: Message, headers: dict[str, str]) -> bool:
    return scope.get("scheme") == "https" or headers.get("x-forwarded-proto", "") == "https"


def _with_secret(send: Send, secure: bool) -> Send:
    """Return a `send` that gives the browser a new secret with the page; nobody between may keep that page."""
    cookie = f"{VISITOR}={secrets.token_hex(16)}; Path=/; Max-Age={_DAY}; HttpOnly; SameSite=Lax"
    cookie += "; Secure" if secure else ""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message.get("headers", []) if name.lower() != b"cache-control"]
            kept += [(b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")]
            message = {**message, "headers": kept}
        await send(message)

    return sending


async def _refuse(kind: str, status: int, send: Send) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008})  # before it was accepted: the client sees HTTP 403
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(_NOT_THE_APP)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": _NOT_THE_APP})
