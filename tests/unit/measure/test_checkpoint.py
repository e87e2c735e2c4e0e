"""Checkpoints survive a kill and refuse what is not theirs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shortviz.errors import ResourceError, RunError
from shortviz.model.delta import load_checkpoint, save_checkpoint
from tests.support.paths import ROOT

MEASURE = """
import sys
sys.path.insert(0, {root!r})
import numpy as np
from pathlib import Path
import shortviz.measure.distances as d
from shortviz.progress import Watch
from tests.contract.test_distances_contract import token_set
from tests.support.families import shared_handle
d.CHECKPOINT_SECONDS = 0.0
def told(progress):
    print(int(progress.done), flush=True)
    if {pause}:
        sys.stdin.readline()
tokens = token_set(tuple(range(2, 42)))
found = d.measure_distances(shared_handle("llama"), tokens, batch_size=4, checkpoint=Path({path!r}), watch=Watch(told))
"""


def test_arrays_come_back_under_their_key_and_no_temporary_file_stays(tmp_path):
    path = tmp_path / "deep" / "c.npz"
    save_checkpoint(path, "key", {"a": np.array([0.1, 1 / 3])})
    np.testing.assert_array_equal(load_checkpoint(path, "key")["a"], [0.1, 1 / 3])
    assert [p.name for p in path.parent.iterdir()] == ["c.npz"]
    assert load_checkpoint(tmp_path / "none.npz", "key") is None
    with pytest.raises(RunError, match="belongs to another measurement"):
        load_checkpoint(path, "other")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x00" * 100])
def test_a_broken_checkpoint_is_refused_with_what_to_do(tmp_path, content):
    path = tmp_path / "c.npz"
    path.write_bytes(content)
    with pytest.raises(RunError, match="cannot be read .* delete it to start again"):
        load_checkpoint(path, "key")


def test_a_place_that_cannot_be_written_is_a_clear_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "c.npz", "key", {})


def test_a_measurement_killed_with_signal_9_goes_on_with_bit_equal_sums(tmp_path):
    def process(path: Path, pause: bool) -> subprocess.Popen:
        code = MEASURE.format(root=str(ROOT), path=str(path), pause=pause)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", code], **pipes)

    killed = process(tmp_path / "killed.npz", pause=True)
    for batch in range(5):  # the callback waits after each batch of four rows, so the kill lands after the fifth
        killed.stdout.readline()
        if batch < 4:
            killed.stdin.write("\n")
            killed.stdin.flush()
    killed.kill()
    killed.communicate()
    assert killed.returncode == -9
    resumed, _ = (run := process(tmp_path / "killed.npz", pause=False)).communicate()
    assert run.returncode == 0
    assert resumed.split()[0] == "24", "goes on after the 20 rows of the killed run"
    whole = process(tmp_path / "whole.npz", pause=False)
    whole.communicate()
    with np.load(tmp_path / "killed.npz") as one, np.load(tmp_path / "whole.npz") as other:
        assert one.files == other.files
        for name in one.files:
            if name != "seconds":
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)
