"""GGUF files: header, de-quantising into the cache, and what broken files and full disks do."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from shortviz.errors import ModelError, ResourceError, Stopped
from shortviz.model.gguf import copies as gguf_cache
from shortviz.model.gguf.container import read_gguf
from shortviz.model.load import estimate, load
from shortviz.progress import Watch
from shortviz.records.model import ModelRef
from shortviz.settings import settings
from tests.support.families import CONTEXT_LENGTH, tiny_tokenizer
from tests.support.ggufs import write_tiny
from tests.support.paths import ROOT

SMALL_FILES_ONLY = """
import resource, sys
from pathlib import Path
from shortviz.model.gguf import copies as gguf_cache
from shortviz.errors import ResourceError
from shortviz.progress import NO_WATCH
from shortviz.model.gguf.container import read_gguf

path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes in one file, here and in children
try:
    gguf_cache.make_copy(path, gguf_cache.copy_folder(path), read_gguf(path), NO_WATCH)
except ResourceError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    path = tmp_path_factory.mktemp("gguf") / "tiny model.gguf"
    return path, write_tiny(path)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache folder of the test's own; it does not exist yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SHORTVIZ_CACHE_DIR", str(folder))
    settings.cache_clear()
    yield folder
    settings.cache_clear()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose content is hashed from now on."""
    names: list[str] = []
    original = hashlib.file_digest

    def digest(file: BinaryIO, kind: str) -> "hashlib._Hash":
        names.append(file.name)
        return original(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", digest)
    gguf_cache._digest.cache_clear()
    return names


def test_the_header_tells_the_size_of_a_gguf_file(tiny_gguf: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, weights = tiny_gguf
    header = read_gguf(path)
    assert (header.architecture, header.num_layers) == ("llama", 6)
    assert header.parameters == sum(weight.numel() for weight in weights.values())
    size = estimate(ModelRef(id=str(path)))
    assert (size.architecture, size.num_layers, size.parameters) == ("LlamaForCausalLM", 6, header.parameters)
    assert size.memory_bytes == 4 * size.parameters
    assert size.download_bytes == 0
    assert size.fits


def test_a_gguf_file_is_de_quantised_once_and_loads_with_its_tokenizer(
    tiny_gguf: tuple[Path, dict[str, torch.Tensor]], cache: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test, because de-quantising starts a process: two at once, contents, later loads, a broken copy, a stop."""
    path, weights = tiny_gguf
    stages: list[str] = []
    details: list[str] = []
    folder = gguf_cache.copy_folder(path)

    def make() -> Path:
        return gguf_cache.make_copy(path, folder, read_gguf(path), Watch(lambda p: details.append(p.detail)))

    with ThreadPoolExecutor() as pool:  # two at once: one works, the other waits for it
        assert [made.result() for made in [pool.submit(make), pool.submit(make)]] == [folder, folder]
    assert "waiting for another process that de-quantises the same file" in details
    assert "de-quantising the weights" in details
    handle = load(ModelRef(id=str(path)), watch=Watch(lambda p: stages.append(p.stage)))
    assert set(stages) == {"load"}
    assert handle.tokenizer("ab c").input_ids == [260, *tiny_tokenizer()(" c").input_ids]
    assert handle.tokenizer.chat_template.startswith("{% for message")
    assert handle.tokenizer.model_max_length == CONTEXT_LENGTH
    state = handle.model.state_dict()
    assert set(state) == set(weights)
    assert all(torch.equal(state[name], weights[name]) for name in weights)

    stages.clear()
    again = load(ModelRef(id=str(path.parent)), watch=Watch(lambda p: stages.append(p.stage)))  # its only GGUF file
    assert set(stages) == {"load"}
    assert again.info.parameters == handle.info.parameters

    with monkeypatch.context() as patch:  # a copy is loaded, however little memory de-quantising would find
        patch.setattr(gguf_cache, "free_bytes", lambda: 0)
        assert estimate(ModelRef(id=str(path))).fits
    assert len(hashed) == 1

    assert folder.is_relative_to(cache)
    (folder / "model.safetensors").write_bytes(b"broken")
    stop = threading.Event()
    with pytest.raises(Stopped, match="nothing was left behind"):
        load(ModelRef(id=str(path)), watch=Watch(lambda p: stop.set() if p.stage == "de-quantise" else None, stop))
    assert not gguf_cache.is_whole(folder)
    assert not list(folder.parent.glob("*.partial-*"))


def test_too_little_memory_to_de_quantise_is_told_before_the_file_is_read(
    tiny_gguf: tuple[Path, dict[str, torch.Tensor]], cache: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, weights = tiny_gguf
    header = read_gguf(path)
    assert header.largest == max(weight.numel() for weight in weights.values())
    needed = 450_000_000 + 4 * header.parameters + 8 * header.largest
    monkeypatch.setattr(gguf_cache, "free_bytes", lambda: needed - 1)
    said = r"De-quantising tiny model.gguf, .* once and in float32, needs 451 MB of memory, and 451 MB is free; close"
    for work in (estimate, load):
        with pytest.raises(ResourceError, match=said):
            work(ModelRef(id=str(path), dtype="bfloat16"))
    assert hashed == []
    assert not cache.exists()
    monkeypatch.setattr(gguf_cache, "free_bytes", lambda: needed)
    assert estimate(ModelRef(id=str(path), dtype="bfloat16")).memory_bytes == 2 * header.parameters


def test_a_gguf_file_is_hashed_once_while_it_stays_as_it_is(
    tiny_gguf: tuple[Path, dict[str, torch.Tensor]], cache: Path, hashed: list[str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny_gguf[0].read_bytes())
    first = gguf_cache.copy_folder(copy)
    assert gguf_cache.copy_folder(copy) == first
    assert len(hashed) == 1
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    assert gguf_cache.copy_folder(copy) != first
    assert len(hashed) == 2


def test_a_disk_that_is_full_leaves_nothing_behind(
    tiny_gguf: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SMALL_FILES_ONLY, str(tiny_gguf[0])],
        env={**os.environ, "SHORTVIZ_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "is full" in done.stdout, done.stdout + done.stderr
    assert "tiny model.gguf was not de-quantised" in done.stdout
    assert [p.name for p in (tmp_path / "gguf").iterdir() if p.is_dir()] == []


def test_a_disk_too_small_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"The copy needs 1000.0 TB of disk, and the disk of .* has .* free"):
        gguf_cache.check_disk(tmp_path / "not" / "there", 10**15, "The copy")


def test_a_cache_that_cannot_be_written_to_is_named(
    tiny_gguf: tuple[Path, dict[str, torch.Tensor]], cache: Path
) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match=r"cannot be written to .*; set SHORTVIZ_CACHE_DIR"):
        load(ModelRef(id=str(tiny_gguf[0])))


def cut_in_weights(data: bytes) -> bytes:
    return data[:-100]


def cut_in_metadata(data: bytes) -> bytes:
    return data[:300]


def wrong_magic(data: bytes) -> bytes:
    return b"GGML" + data[4:]


def old_version(data: bytes) -> bytes:
    return data[:4] + b"\x01\0\0\0" + data[8:]


def without_architecture(data: bytes) -> bytes:
    return data.replace(b"general.architecture", b"general.Architecture")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_in_weights, r"is cut short: \d+ of \d+ bytes; fetch it again"),
        (cut_in_metadata, r"is corrupt or cut short; fetch it again"),
        (wrong_magic, r"is not a GGUF file: it does not begin with the letters GGUF"),
        (old_version, r"has version 1; versions 2 and 3 can be read"),
        (without_architecture, r"names no architecture or number of layers"),
    ],
)
def test_a_broken_gguf_file_is_refused_before_it_is_read(
    tiny_gguf: tuple[Path, dict[str, torch.Tensor]],
    damage: Callable[[bytes], bytes],
    message: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(damage(tiny_gguf[0].read_bytes()))
    with pytest.raises(ModelError, match=message):
        load(ModelRef(id=str(path)))


def test_a_folder_with_several_gguf_files_asks_which_one(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"holds 2 GGUF files \(a.gguf, b.gguf\); give the path of one"):
        estimate(ModelRef(id=str(tmp_path)))
