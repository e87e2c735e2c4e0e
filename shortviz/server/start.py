"""How the app is started: the command line and environment of its server, stricter where strangers use it."""

import importlib.util
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shortviz.settings import Settings

SCRIPTS = Path(__file__).resolve().parents[1] / "ui" / "start"

HOSTED_OPTIONS: Mapping[str, str] = {
    "client.showErrorDetails": "type",
    "client.toolbarMode": "viewer",
    "server.enableCORS": "true",
    "server.enableXsrfProtection": "true",
    "server.enableStaticServing": "false",
    "server.enableAgentApi": "false",
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": "false",
}
"""What Streamlit is told where strangers use the app, whatever a config file says."""


def can_sign_in(rules: Settings) -> bool:
    """Return whether OAuth credentials are there, and the package that Streamlit needs for them."""
    known = rules.oauth_client_id and rules.oauth_client_secret and rules.public_host
    return bool(known) and importlib.util.find_spec("authlib") is not None


def host_names(rules: Settings) -> tuple[str, ...]:
    """Return the names that a hosted server answers to; () is any, where its owner has not said by which it is reached.

    The name it is reached by, and this machine for health checks: any other Host is somebody's rebinding.
    """
    return (rules.public_host.lower(), "localhost", "127.0.0.1") if rules.is_hosted and rules.public_host else ()


def server_command(rules: Settings, host: str, port: int) -> list[str]:
    """Return the command that serves the app: a script of this package, wherever that is installed."""
    script = SCRIPTS / ("asgi_app.py" if rules.is_hosted or can_sign_in(rules) else "app.py")
    options = {"server.address": host, "server.port": str(port), "server.headless": "true"}
    if rules.is_hosted:
        options |= {**HOSTED_OPTIONS, "server.maxUploadSize": str(rules.max_upload_mb)}
    command = [sys.executable, "-m", "streamlit", "run", str(script)]
    command += [f"--{name}={value}" for name, value in options.items()]
    command += [f"--server.allowedHosts={name}" for name in host_names(rules)]
    if rules.is_hosted and rules.public_host:
        command.append(f"--browser.serverAddress={rules.public_host}")
    return command


def server_environment(rules: Settings) -> dict[str, str]:
    """Return the environment of the server; where it is hosted, no token of its owner is ever used for a visitor."""
    environment = dict(os.environ)
    if rules.is_hosted:
        environment["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            environment.pop(name, None)
    return environment


# Sign-in with a Hugging Face account, where a Space hands out OAuth credentials: what Streamlit must know of it.

SCOPE = "openid profile contribute-repos"
"""`contribute-repos` creates repositories and writes to those that this app created: nothing else of the account."""


def auth_secrets(rules: Settings) -> dict[str, Any]:
    """Return Streamlit's secrets for signing in; the cookie's secret is new with every start of the server."""
    return {
        "auth": {
            "redirect_uri": f"https://{rules.public_host}/oauth2callback",
            "cookie_secret": secrets.token_hex(32),
            "client_id": rules.oauth_client_id,
            "client_secret": rules.oauth_client_secret,
            "server_metadata_url": f"{rules.openid_provider_url.rstrip('/')}/.well-known/openid-configuration",
            "client_kwargs": {"scope": SCOPE},
            "expose_tokens": ["access"],
        }
    }
