"""A child process whose memory is sampled while it runs, in a control group of limited memory if asked."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path


def run_watched(command: Sequence[str], limit: int | None = None) -> tuple[str, dict[str, int]]:
    """Return what a child printed and its peaks of RssAnon and VmRSS, in bytes; it must end with 0.

    VmRSS has mapped files and the libraries' code too. `limit` is in bytes.
    """
    group = None if limit is None else limited_group(limit)
    enter = None if group is None else lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=enter)
    peaks = {"RssAnon": 0, "VmRSS": 0}
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.01):
            try:
                now = resident(child.pid)
            except OSError:
                return
            for name in peaks:
                peaks[name] = max(peaks[name], now.get(name, 0))

    sampler = threading.Thread(target=sample)
    sampler.start()
    out, _ = child.communicate()
    done.set()
    sampler.join()
    assert child.returncode == 0, f"{' '.join(command)} failed"
    if group is not None:
        group.rmdir()
    return out, peaks


def resident(pid: int | str = "self") -> dict[str, int]:
    """Return RssAnon, RssFile and VmRSS of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    named = (line.split() for line in lines if line.startswith(("RssAnon", "RssFile", "VmRSS")))
    return {name.rstrip(":"): int(number) * 1024 for name, number, _ in named}


def limited_group(limit: int) -> Path:
    """Make a control group (version 2) that allows so many bytes of memory; page cache is given back inside it."""
    group = Path("/sys/fs/cgroup/shortviz-benchmark")
    group.mkdir()
    if not (group / "memory.max").exists():
        group.rmdir()
        sys.exit("This machine has no control groups of version 2 that a limit can be set in; leave --limit out.")
    (group / "memory.max").write_text(str(limit))
    return group
