"""Pushing to a hub: a real client, a real server on loopback, its failures, and a token that nobody ever sees."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from shortviz.errors import ExportError, ResourceError, ShortvizError, Stopped
from shortviz.export.push import Destination, check_proved, push_folder
from shortviz.progress import Progress, Watch
from tests.support.hub_upload import UploadHub, upload_server

# huggingface_hub 2.4.0 hands a file to httpx2 as `data`, which httpx2 2.16 wants called `content`.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_aSecretThatMustNotShow"


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in two weight files, exported and proved by the real export."""
    from shortviz.export import export
    from shortviz.model import prune
    from shortviz.records.plan import Block, PrunePlan
    from tests.support.families import tiny_handle

    folder = tmp_path_factory.mktemp("exports") / "short"
    handle = tiny_handle("llama")
    pruned = prune.prune(handle, PrunePlan.of_blocks(handle.info.num_layers, Block(start=1, n=2)))
    export.export_checkpoint(pruned, folder, base_info=handle.info)
    return folder


@pytest.fixture
def folder(proved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(proved, tmp_path / "short"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the server speaks LFS
    with upload_server(TOKEN) as server:
        yield server


def to(hub: UploadHub, repo: str = "me/short", token: str = TOKEN, private: bool = True) -> Destination:
    return Destination(repo_id=repo, token=token, private=private, endpoint=hub.url)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_proved_folder_arrives_whole_in_one_commit(hub: UploadHub, proved: Path) -> None:
    seen: list[Progress] = []
    report = push_folder(proved, to(hub), watch=Watch(seen.append))
    arrived = dict(hub.repositories["me/short"])
    arrived.pop(".gitattributes")
    assert arrived == contents(proved)
    assert hub.private["me/short"]
    assert sum("commit" in request for request in hub.requests) == 1
    assert report.url == f"{hub.url}/me/short"
    assert report.files == len(arrived)
    assert [p.stage for p in seen][:1] == ["check"]
    assert seen[-1].done == seen[-1].total == report.bytes


def test_a_name_without_a_user_goes_to_the_tokens_own_and_a_second_push_updates_it(
    hub: UploadHub, proved: Path
) -> None:
    push_folder(proved, to(hub, "short", private=False))
    assert not hub.private["me/short"]
    puts = hub.puts
    assert push_folder(proved, to(hub, "short")).repo_id == "me/short"
    assert hub.puts == puts, "what is there is not sent again"


def test_a_repository_that_holds_something_else_is_left_alone(hub: UploadHub, proved: Path) -> None:
    hub.repositories["me/short"] = {".gitattributes": b"", "model.safetensors": b"years of work"}
    with pytest.raises(ExportError, match="is there already .HTTP 409. and holds something else; choose another name"):
        push_folder(proved, to(hub))
    assert hub.repositories["me/short"]["model.safetensors"] == b"years of work"


@pytest.mark.parametrize(
    ("step", "status", "kind", "words"),
    [
        ("create", 403, ExportError, "may not write to me/short"),
        ("create", 402, ExportError, "asks for payment"),
        ("create", 404, ExportError, "has no place for me/short"),
        ("create", 429, ResourceError, "too many requests"),
        ("create", 500, ResourceError, "HTTP 500"),
        ("preupload", 403, ExportError, "may not write to me/short"),
        ("batch", 413, ExportError, "too large"),
        ("put:1", 403, ExportError, "may not write to me/short"),
        ("commit", 409, ExportError, "changed by somebody else meanwhile"),
        ("commit", 429, ResourceError, "not sent a second time"),
    ],
)
def test_every_failure_is_one_sentence_that_says_what_to_do(
    hub: UploadHub, proved: Path, step: str, status: int, kind: type[ShortvizError], words: str
) -> None:
    hub.failures[step] = status
    with pytest.raises(kind, match=words) as caught:
        push_folder(proved, to(hub))
    said = str(caught.value)
    assert "\n" not in said
    assert "gated" not in said
    assert TOKEN not in said
    assert set(hub.repositories.get("me/short", {})) <= {".gitattributes"}, "never half a checkpoint"


@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b'"words"', b"<html>Log in</html>"])
@pytest.mark.parametrize("step", ["whoami", "create", "preupload", "batch", "commit"])
def test_an_answer_that_no_hub_gives_is_named_in_one_sentence(
    hub: UploadHub, proved: Path, step: str, body: bytes
) -> None:
    if step == "whoami":  # asked only where the repository is there and its owner was not given
        hub.repositories["me/short"] = {".gitattributes": b""}
    hub.garbled[step] = body
    with pytest.raises(ResourceError, match=f"{hub.url} answered with something that is not a hub's") as caught:
        push_folder(proved, to(hub, "short" if step == "whoami" else "me/short"))
    said = str(caught.value)
    assert "\n" not in said
    assert TOKEN not in said
    assert "proxy" in said, "says what to do"


def test_a_wrong_token_is_called_that_and_not_a_gated_model(hub: UploadHub, proved: Path) -> None:
    with pytest.raises(ExportError, match="does not know this token .HTTP 401.") as caught:
        push_folder(proved, to(hub, token="hf_wrong"))
    assert "gated" not in str(caught.value)
    assert "hf_wrong" not in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hf_wrong" not in str(error)
        error = error.__cause__


def test_a_broken_upload_goes_on_where_it_broke(hub: UploadHub, folder: Path) -> None:
    more = folder / "more.bin"  # a second large file, proved as well
    more.write_bytes(b"weights" * 1000)
    _prove_again(folder)
    hub.failures["put:2"] = 400
    with pytest.raises(ResourceError, match="HTTP 400.*not sent a second time"):
        push_folder(folder, to(hub))
    assert len(hub.objects) == 1
    hub.failures.clear()
    push_folder(folder, to(hub))
    assert hub.puts == 3, "the file that had arrived was not sent again"
    assert hub.repositories["me/short"]["more.bin"] == more.read_bytes()


def test_a_connection_cut_in_the_middle_of_a_file_is_taken_up_again(hub: UploadHub, proved: Path) -> None:
    hub.failures["put:1"] = "cut"
    push_folder(proved, to(hub))
    assert hub.puts == 2
    assert "model.safetensors" in hub.repositories["me/short"]


def test_a_hub_that_is_not_there_is_said_to_be(proved: Path) -> None:
    gone = Destination(repo_id="me/short", token=TOKEN, endpoint="http://127.0.0.1:9")
    with pytest.raises(ResourceError, match="broke off") as caught:
        push_folder(proved, gone)
    assert TOKEN not in str(caught.value)


def test_a_stop_leaves_the_repository_as_it_was(hub: UploadHub, proved: Path) -> None:
    stop = threading.Event()
    with pytest.raises(Stopped):
        push_folder(proved, to(hub), watch=Watch(lambda p: stop.set(), stop))
    assert set(hub.repositories["me/short"]) == {".gitattributes"}


def _prove_again(folder: Path) -> None:
    from shortviz.export.folder import fingerprints

    record = json.loads((folder / "shortviz.json").read_text())
    files = fingerprints(folder)
    files.pop("shortviz.json")
    (folder / "shortviz.json").write_text(json.dumps(record | {"files": files}))


def _flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _no_proof(folder: Path) -> None:
    record = json.loads((folder / "shortviz.json").read_text())
    del record["proof"]
    (folder / "shortviz.json").write_text(json.dumps(record))


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (_flip, "model.safetensors was changed"),
    "a file more": (lambda folder: (folder / "evil.py").write_text("x"), "evil.py was changed, added or removed"),
    "a file less": (lambda folder: (folder / "config.json").unlink(), "config.json was changed, added or removed"),
    "no record": (lambda folder: (folder / "shortviz.json").unlink(), "export it first"),
    "a broken record": (lambda folder: (folder / "shortviz.json").write_text("{"), "export it first"),
    "another record": (lambda folder: (folder / "shortviz.json").write_text("[]"), "not a record"),
    "no proof": (_no_proof, "holds no proof"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_was_not_proved_is_never_pushed(hub: UploadHub, folder: Path, name: str) -> None:
    spoil, words = SPOILT[name]
    spoil(folder)
    with pytest.raises(ExportError, match=words):
        push_folder(folder, to(hub))
    assert hub.requests == []


def test_a_proved_folder_is_found_to_be_one(proved: Path) -> None:
    assert set(check_proved(proved)) == set(contents(proved))


@pytest.mark.parametrize("repo", ["", "a/b/c", "../x", "me/..", "me/a b", "me/" + "x" * 200, "me/a--b", "<b>", "me/x."])
def test_a_name_that_cannot_be_one_is_refused_before_anything_is_sent(hub: UploadHub, proved: Path, repo: str) -> None:
    with pytest.raises(ExportError, match="cannot be the name"):
        push_folder(proved, to(hub, repo))
    assert hub.requests == []


def test_a_token_is_shown_nowhere(hub: UploadHub, proved: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    assert TOKEN not in repr(to(hub))
    report = push_folder(proved, to(hub))
    assert TOKEN not in repr(report)
    assert TOKEN not in caplog.text
    for bad in ("", "two words", "with\nline"):
        with pytest.raises(ExportError, match="token"):
            push_folder(proved, to(hub, token=bad))


def test_the_command_line_takes_the_token_from_the_environment(
    hub: UploadHub, proved: Path, shortviz: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    code, out, err = shortviz("push", str(proved), "me/short", "--token-env", "MY_TOKEN", "--json")
    assert code == 0, err
    assert json.loads(out)["repo_id"] == "me/short"
    assert TOKEN not in out + err
    code, _, err = shortviz("push", str(proved), "me/short", "--token-env", "NOT_THERE")
    assert code == 2
    assert "no token in the environment variable NOT_THERE" in err
