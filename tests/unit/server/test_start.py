"""How the app is served where strangers use it, and what a Space is made of."""

import runpy
from pathlib import Path

import pytest
import yaml

from shortviz.server.start import HOSTED_OPTIONS, server_command, server_environment
from shortviz.settings import Settings
from tests.support.paths import ROOT


def options_of(command: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in command:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_a_hosted_server_gets_the_settings_of_the_checklist() -> None:
    rules = Settings.model_validate({"hosted": True, "public_host": "me-x.hf.space", "max_upload_mb": 5})
    options = options_of(server_command(rules, "0.0.0.0", 8501))
    assert {name: options[name] for name in HOSTED_OPTIONS} == {n: [v] for n, v in HOSTED_OPTIONS.items()}
    assert options["server.maxUploadSize"] == ["5"]
    assert options["server.allowedHosts"] == ["me-x.hf.space", "localhost", "127.0.0.1"]
    assert options["server.address"] == ["0.0.0.0"]
    assert options["client.showErrorDetails"] == ["type"]


def test_streamlit_knows_every_option_by_that_name() -> None:
    from streamlit import config

    known = config.get_config_options()
    assert set(HOSTED_OPTIONS) <= set(known)
    assert {"server.allowedHosts", "server.maxUploadSize", "browser.serverAddress"} <= set(known)


def test_ones_own_server_listens_on_localhost_and_is_otherwise_as_configured() -> None:
    options = options_of(server_command(Settings(hosted=False), "localhost", 9000))
    assert options == {"server.address": ["localhost"], "server.port": ["9000"], "server.headless": ["true"]}


def test_the_owners_token_is_never_used_for_a_visitor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    assert "HF_TOKEN" not in server_environment(Settings(hosted=True))
    assert server_environment(Settings(hosted=True))["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"
    assert server_environment(Settings(hosted=False))["HF_TOKEN"] == "hf_owner"


def test_a_space_is_the_tracked_files_with_front_matter_on_top(tmp_path: Path) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "make_space.py"))
    names = tool["make_space"](tmp_path / "space")
    readme = (tmp_path / "space" / "README.md").read_text(encoding="utf-8")
    _, head, body = readme.split("---\n", 2)
    matter = yaml.safe_load(head)
    assert (matter["sdk"], matter["app_port"], matter["license"]) == ("docker", 8501, "apache-2.0")
    assert matter["hf_oauth_scopes"] == ["contribute-repos"]
    assert len(matter["short_description"]) <= 60
    assert body.lstrip().startswith("# shortviz")
    assert {"Dockerfile", "Makefile", "app.py", ".streamlit/config.toml"} <= set(names)
    assert not [name for name in names if name.startswith("tests/")]
    with pytest.raises(SystemExit, match="not an empty folder"):
        tool["make_space"](tmp_path / "space")


def test_every_limit_is_in_the_list_that_an_owner_reads() -> None:
    listed = (ROOT / "docs" / "hosting.md").read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        variable = f"SHORTVIZ_{name.upper()}"
        if field.validation_alias is None:
            assert f"`{variable}`" in listed, variable
