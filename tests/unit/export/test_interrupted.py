"""An export or a zip that is stopped, interrupted, or runs out of disk leaves nothing behind but a clear message."""

import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

import pytest

from shortviz.errors import ExportError, ResourceError, Stopped
from shortviz.export.export import export_checkpoint
from shortviz.export.folder import (
    check_target,
    filled_beside,
    folder_bytes,
    move_into_place,
    remove_leftovers,
    zip_checkpoint,
)
from shortviz.model.handle import ModelHandle
from shortviz.progress import Progress, Watch
from tests.support.families import shared_handle
from tests.support.paths import ROOT

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def handle() -> ModelHandle:
    return shared_handle("llama")


@pytest.mark.parametrize("stage", ["write", "reload", "prove generation"])
def test_a_stop_at_any_stage_leaves_nothing(handle: ModelHandle, tmp_path: Path, stage: str) -> None:
    stop = threading.Event()
    threads = threading.active_count()

    def stop_there(progress: Progress) -> None:
        if progress.stage == stage:
            stop.set()

    with pytest.raises(Stopped, match="export was stopped; nothing was left behind"):
        export_checkpoint(handle, tmp_path / "out", base_info=handle.info, watch=Watch(stop_there, stop))
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads


def test_an_interrupt_leaves_nothing(handle: ModelHandle, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(handle, tmp_path / "a" / "b" / "out", base_info=handle.info, watch=Watch(interrupt))
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_disk_is_refused_before_anything_is_written(
    handle: ModelHandle, small_disk: Callable[..., Path]
) -> None:
    disk = small_disk(MEGABYTE)
    with pytest.raises(ResourceError, match=r"needs 3\d\.\d MB of disk, and .* has 1\.0 MB free; free some"):
        export_checkpoint(handle, disk / "out", base_info=handle.info)
    assert list(disk.iterdir()) == []


def fill_up(file: FileIO) -> None:
    while True:
        file.write(bytes(65536))


def test_a_disk_that_fills_up_during_the_export_leaves_nothing(
    handle: ModelHandle, small_disk: Callable[..., Path]
) -> None:
    disk = small_disk(40 * MEGABYTE)

    def fill(progress: Progress) -> None:
        if progress.stage == "reload" and progress.done == 0:  # the proof still has to write its logits, and the card
            with (disk / "other").open("wb", buffering=0) as other, pytest.raises(OSError, match="No space left"):
                fill_up(other)

    with pytest.raises(ResourceError, match="disk .*full.*nothing was left behind"):
        export_checkpoint(handle, disk / "out", base_info=handle.info, watch=Watch(fill))
    assert [path.name for path in disk.iterdir()] == ["other"]


def test_a_read_only_disk_is_refused(handle: ModelHandle, small_disk: Callable[..., Path]) -> None:
    disk = small_disk(100 * MEGABYTE, "ro")
    with pytest.raises(ExportError, match=r"Nothing can be written to .*disk \(Read-only file system\)"):
        export_checkpoint(handle, disk / "out", base_info=handle.info)


def test_a_mount_point_cannot_be_the_target(small_disk: Callable[..., Path]) -> None:
    with pytest.raises(ExportError, match="is a mount point.*choose a new folder inside it"):
        check_target(small_disk(MEGABYTE))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a" * 300, "File name too long"),
        ("a" * 240, "File name too long"),  # what is filled beside it has a longer name
        ("link/out", "link .it is a link to nothing"),
        ("a\0b", "embedded null byte"),
    ],
)
def test_a_name_that_the_system_refuses_is_told_before_anything_is_written(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ExportError, match=f"Nothing can be written to .*{reason}.*; choose a folder"):
        check_target(tmp_path / name)


def test_a_home_that_is_not_known_is_told() -> None:
    with pytest.raises(ExportError, match="~nosuchperson/out .Could not determine home directory.; choose a folder"):
        check_target(Path("~nosuchperson/out"))


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from shortviz.errors import ResourceError
from shortviz.export.export import export_checkpoint
from tests.support.families import tiny_handle

handle = tiny_handle("llama")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    export_checkpoint(handle, Path(sys.argv[1]), base_info=handle.info)
except ResourceError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "deep" / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith(f"The disk of {tmp_path}/deep is full (File too large): the checkpoint needs ")
    assert done.stdout.endswith("nothing was left behind, so free some space and export again.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_fills_up_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with filled_beside(target) as room:
        (room / "checkpoint").mkdir()
        target.mkdir()
        (target / "notes.txt").write_text("mine")
        with pytest.raises(ExportError, match="could not be named .*Directory not empty"):
            move_into_place(room / "checkpoint", target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (target / "notes.txt").read_text() == "mine"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like an exported one."""
    folder = tmp_path / "short model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(9 * MEGABYTE))
    (folder / "sub" / "more.txt").write_text("more")
    return folder


def test_a_zip_holds_the_folder_uncompressed_and_tells_its_progress(folder: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    target = zip_checkpoint(folder, tmp_path / "out.zip", watch=Watch(told.append))
    with zipfile.ZipFile(target) as packed:
        assert packed.testzip() is None
        members = packed.infolist()
        assert {m.filename for m in members} == {
            "short model/config.json",
            "short model/model.safetensors",
            "short model/sub/more.txt",
        }
        assert {m.compress_type for m in members} == {zipfile.ZIP_STORED}
        assert packed.read("short model/model.safetensors") == (folder / "model.safetensors").read_bytes()
    assert told[-1].done == told[-1].total == 9 * MEGABYTE + 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zip", "short model"]


def test_a_stopped_zip_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    with pytest.raises(Stopped, match="zip file was stopped; nothing was left behind"):
        zip_checkpoint(folder, tmp_path / "out.zip", watch=Watch(lambda progress: stop.set(), stop))
    assert [path.name for path in tmp_path.iterdir()] == ["short model"]


def test_a_zip_does_not_overwrite(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out.zip").write_text("mine")
    with pytest.raises(ExportError, match="out.zip exists; choose another name"):
        zip_checkpoint(folder, tmp_path / "out.zip")


def test_a_zip_without_room_is_refused(folder: Path, small_disk: Callable[..., Path]) -> None:
    disk = small_disk(4 * MEGABYTE)
    with pytest.raises(ResourceError, match=r"needs 9\.0 MB"):
        zip_checkpoint(folder, disk / "out.zip")
    assert list(disk.iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from shortviz.export.folder import filled_beside
with filled_beside(Path(sys.argv[1])) as room:
    (room / "checkpoint").mkdir()
    (room / "checkpoint" / "model.safetensors").write_bytes(bytes(1000))
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def leftover(tmp_path: Path) -> Iterator[tuple[Path, "subprocess.Popen[str]"]]:
    """The temporary folder of a process that writes a checkpoint, and that process."""
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    (room,) = tmp_path.glob(".out.partial-*")
    yield room, child
    child.kill()
    child.wait()
    child.stdout.close()


def test_the_next_export_removes_what_a_killed_one_left(
    handle: ModelHandle, tmp_path: Path, leftover: "tuple[Path, subprocess.Popen[str]]"
) -> None:
    room, child = leftover
    remove_leftovers(tmp_path)
    assert (room / "checkpoint" / "model.safetensors").is_file(), "its process lives"
    child.kill()
    child.wait()
    assert room.is_dir()
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        export_checkpoint(handle, tmp_path / "other", base_info=handle.info, watch=Watch(stop=stop))
    assert list(tmp_path.iterdir()) == []


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    theirs = tmp_path / ".out.partial-theirs"
    theirs.mkdir()
    (tmp_path / ".notes.partial-txt").write_text("a file")
    with filled_beside(tmp_path / "out") as room:
        remove_leftovers(tmp_path)
        assert room.is_dir(), "two exports of one process side by side"
    assert theirs.is_dir()
    assert (tmp_path / ".notes.partial-txt").is_file()


def test_a_file_renamed_or_removed_while_a_folder_is_weighed_breaks_nothing(tmp_path: Path) -> None:
    """As transformers does while it writes: a temporary name first, then the last one."""
    (tmp_path / "steady").write_bytes(bytes(100))
    (tmp_path / "inner").mkdir()
    end = threading.Event()

    def rename() -> None:
        while not end.is_set():
            for n in range(50):
                (tmp_path / "inner" / f"partial-{n}").write_bytes(b"1")
                (tmp_path / "inner" / f"partial-{n}").rename(tmp_path / "inner" / f"{n}")
                (tmp_path / "inner" / f"{n}").unlink()

    writer = threading.Thread(target=rename)
    writer.start()
    try:
        found = {folder_bytes(tmp_path) for _ in range(300)}
    finally:
        end.set()
        writer.join()
    assert min(found) >= 100
    assert max(found) <= 200
