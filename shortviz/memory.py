"""How much memory is free on this machine, inside the limit of a container. No torch."""

from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Return the bytes of memory that are free now, within this container's limit."""
    return min(int(psutil.virtual_memory().available), _free_in_container())


def _free_in_container() -> int:
    """Return what the control group (version 2) still allows, or a huge number where there is no limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 1 << 62
    if not limit.isdecimal():
        return 1 << 62
    # The page cache of files counts as used, but is given back when memory is short.
    return max(int(limit) - used + int(stat.get("inactive_file", 0)), 0)
