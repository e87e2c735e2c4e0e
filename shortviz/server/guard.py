"""Who may speak to a hosted server, decided before Streamlit hears anything: an ASGI middleware.

It also gives each browser a secret, in a cookie that no script can read: a visitor who reloads is known again by it,
and sees the jobs that they started, which belong to a hash of it. A page inside another site's gets no such cookie.

Streamlit 1.67 checks Host and Origin of WebSockets only, and asks a server on the internet for its own address whenever
a foreign Origin knocks: on the loop that serves everybody, up to two seconds where outgoing traffic is dropped. Its
metrics say to anybody how many sessions there are.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

VISITOR = "shortviz_visitor"
"""The cookie's name."""
_SECRET = re.compile(r"[0-9a-f]{32}")
_DAY = 86_400
HIDDEN = ("/_stcore/metrics",)


class HostGuard:
    """Turns away sessions and uploads for other hosts, sessions of other pages, and what only the owner should read.

    Files are read under any name: probes of a container's port come by its address, and files hold nothing of anybody.
    So starlette's TrustedHostMiddleware, which refuses those too, is not this.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        """Serve `app` under these host names; () is any name, and a page must then come from the host it speaks to."""
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] in ("http", "websocket"):
            asked = HTTPConnection(scope)
            status = self._refusal(asked)
            if status is not None:
                await PlainTextResponse("This app is not served under that name.", status)(scope, receive, send)
                return
            if _reads(scope) and "text/html" in asked.headers.get("accept", "") and not _owner(asked):
                send = _with_secret(send, asked)
        await self.app(scope, receive, send)

    def _refusal(self, asked: HTTPConnection) -> int | None:
        """Return the HTTP status of what is refused; programs send no origin, browsers always do."""
        host, origin = _name(f"//{asked.headers.get('host', '')}"), asked.headers.get("origin")
        names = self.hosts or (host,)
        if asked["type"] == "websocket":
            return None if host in names and (origin is None or _name(origin) in names) else 403
        if not (_reads(asked) or host in names):
            return 421  # misdirected request
        return 404 if asked["path"].rstrip("/") in HIDDEN else None


def _reads(scope: Mapping[str, Any]) -> bool:
    return scope["type"] == "http" and scope["method"] in ("GET", "HEAD")


def _name(url: str) -> str:
    """Return the host name of an address, in lower case; "" where it has none or is malformed."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


def owner_of(secret: str) -> str:
    """Return the name that jobs of this browser belong to; "" where the cookie holds no secret of ours."""
    return hashlib.sha256(secret.encode()).hexdigest()[:32] if _SECRET.fullmatch(secret) else ""


def _owner(asked: HTTPConnection) -> str:
    return owner_of(asked.cookies.get(VISITOR, ""))


def _with_secret(send: Send, asked: HTTPConnection) -> Send:
    """Return a `send` that gives the browser a new secret with the page; nobody between may keep that page."""
    cookie = f"{VISITOR}={secrets.token_hex(16)}; Path=/; Max-Age={_DAY}; HttpOnly; SameSite=Lax"
    if "https" in (asked.get("scheme"), asked.headers.get("x-forwarded-proto")):
        cookie += "; Secure"

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["cache-control"] = "no-store"
            headers.append("set-cookie", cookie)
        await send(message)

    return sending
