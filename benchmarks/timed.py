"""Run a command to its end, and print its wall-clock seconds and peak resident memory in bytes as JSON.

What the command writes to stdout is dropped; its stderr is passed on.

    python benchmarks/timed.py COMMAND…

A process of its own, and a small one: Linux counts the memory of whoever started a process into that process's peak.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time


def main() -> int:
    """Run, wait, tell."""
    began = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    sys.stdout.write(json.dumps({"seconds": seconds, "peak": peak}) + "\n")
    return 0 if process.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
