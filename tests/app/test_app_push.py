"""Pushing from the Export page: exported, proved, pushed to a real server; the token is nowhere but in the session."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from shortviz.server.start import auth_secrets, can_sign_in
from shortviz.service.service import Service
from shortviz.settings import Settings, settings
from shortviz.ui.session import state as s
from tests.support.app import App
from tests.support.hub_upload import UploadHub, upload_server

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_aSecretThatMustNotShow"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with upload_server(TOKEN) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


def test_an_export_is_pushed_and_a_refusal_is_one_sentence(
    loaded: App, tools: Service, hub: UploadHub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    page = loaded.page("export")
    page.at.get("button_group")[0].set_value("hub")
    page.run().click("export_button")
    done = page.finish("export")
    assert done.state == "done", done.error
    folder = Path(done.result.folder)
    assert folder.is_relative_to(settings().downloads_dir)

    page.at.text_input(key=s.REPOSITORY).set_value("me/short")
    page.at.text_input(key=s.TOKEN).set_value("hf_wrongOne")
    page.run().click("push_button")
    assert page.finish("push").state == "failed"
    assert ["does not know this token" in error for error in page.errors] == [True]

    page.at.text_input(key=s.TOKEN).set_value(TOKEN)
    page.run().click("push_button")
    done = page.finish("push")
    assert done.state == "done", done.error
    assert set(hub.repositories["me/short"]) >= {"model.safetensors", "README.md", "shortviz.json"}
    assert f"{hub.url}/me/short" in page.words
    seen = f"{tools.jobs.jobs()}{[tools.context(job.id) for job in tools.jobs.jobs()]}{caplog.text}{page.words}"
    seen += f"{dict(page.at.query_params)}{page.errors}"
    for secret in (TOKEN, "hf_wrongOne"):
        assert secret not in seen
        assert not [p for p in settings().runs_dir.rglob("*.json") if secret in p.read_text(errors="ignore")]


def test_sign_in_asks_for_as_little_as_pushing_needs() -> None:
    space = {"oauth_client_id": "id", "oauth_client_secret": "very-secret", "public_host": "me-shortviz.hf.space"}
    rules = Settings.model_validate(space)
    auth = auth_secrets(rules)["auth"]
    assert auth["redirect_uri"] == "https://me-shortviz.hf.space/oauth2callback"
    assert auth["client_kwargs"]["scope"].split() == ["openid", "profile", "contribute-repos"]
    assert auth["server_metadata_url"] == "https://huggingface.co/.well-known/openid-configuration"
    assert len(auth["cookie_secret"]) == 64
    assert auth["cookie_secret"] != auth_secrets(rules)["auth"]["cookie_secret"]
    assert "very-secret" not in repr(rules)
    assert not can_sign_in(Settings.model_validate(space | {"oauth_client_id": ""}))
