"""How much memory there is to take."""

from __future__ import annotations

import resource
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
CGROUP = Path("/sys/fs/cgroup")
# Addresses, in bytes, that TensorFlow takes when it is loaded, most of them without memory behind them; measured.
TENSORFLOW_ADDRESSES = 2 << 30


def proc_fields(path: Path) -> dict[str, str]:
    """``name: value`` lines of a file of /proc up to its first empty line; empty where there is none."""
    try:
        first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def free_memory() -> int | None:
    """Memory this process can have, in bytes, as the system, the container and ``ulimit`` say; None where none does."""
    amounts = [] if (addresses := _free_addresses()) is None else [addresses]
    available = proc_fields(MEMINFO).get("MemAvailable", "").partition(" kB")[0]
    if available.isdigit():
        amounts.append(int(available) * 1024)
    try:
        limit, used = ((CGROUP / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        pass
    else:
        if limit.isdigit():
            amounts.append(max(0, int(limit) - int(used) + _cached_files()))
    return min(amounts, default=None)


def _free_addresses() -> int | None:
    """Bytes that ``ulimit -v`` leaves for batches; None where there is no such limit. Beyond it TensorFlow crashes."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    taken = proc_fields(STATUS).get("VmSize", "").partition(" kB")[0]
    if limit == resource.RLIM_INFINITY or not taken.isdigit():
        return None
    return max(0, limit - int(taken) * 1024 - TENSORFLOW_ADDRESSES)


def _cached_files() -> int:
    """Bytes of files that the container's memory holds, which it gives up for a process that needs them."""
    try:
        pairs = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return 0
    return sum(int(pairs.get(name, 0)) for name in ("inactive_file", "active_file"))
