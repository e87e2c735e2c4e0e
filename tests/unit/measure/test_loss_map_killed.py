"""A measured map whose process is killed with signal 9, at any moment, goes on from its checkpoint."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shortviz.measure.loss_map import measure_losses
from shortviz.progress import Watch
from tests.support.families import shared_handle
from tests.support.maps import assert_same, map_windows
from tests.support.paths import ROOT

MEASURE = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import shortviz.measure.loss_map as m
from shortviz.progress import Watch
from tests.support.families import shared_handle
from tests.support.maps import map_windows
m.CHECKPOINT_SECONDS, m.GROUP_TOKENS = 0.0, 1
def told(progress):
    if progress.snapshot is None:  # within a group
        return
    print(int(progress.done), flush=True)
    sys.stdin.readline()
m.measure_losses(shared_handle("llama"), map_windows(), coarse_tokens=16, checkpoint=Path({path!r}), watch=Watch(told))
"""


def test_a_map_killed_with_signal_9_goes_on_with_bit_equal_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shortviz.measure.loss_map.GROUP_TOKENS", 1)
    path = tmp_path / "losses.npz"
    code = MEASURE.format(root=str(ROOT), path=str(path))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    killed = subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)
    assert killed.stdin is not None
    assert killed.stdout is not None
    done = 0
    for _ in range(7):  # of 20 groups: the five of the first look, and two of the first window
        done = int(killed.stdout.readline())
        killed.stdin.write("\n")
        killed.stdin.flush()
    killed.kill()  # in the middle of the eighth group, or just after it
    killed.communicate()
    assert killed.returncode == -9
    resumed: list[int] = []
    handle, windows = shared_handle("llama"), map_windows()
    result = measure_losses(
        handle,
        windows,
        coarse_tokens=16,
        checkpoint=path,
        watch=Watch(lambda p: resumed.append(int(p.done)) if p.snapshot else None),
    )
    assert resumed[0] > done, "nothing that was done is done again"
    assert len(resumed) in (12, 13), "but for the group that was under way"
    assert_same(result, measure_losses(handle, windows, coarse_tokens=16))
    assert np.isfinite(result.increase.mean[0, :6]).all()
