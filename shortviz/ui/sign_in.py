"""Sign-in with a Hugging Face account, where a Space hands out OAuth credentials: what Streamlit must know of it."""

import secrets
from typing import Any

from shortviz.settings import Settings

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
