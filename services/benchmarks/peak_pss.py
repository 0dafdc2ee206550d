"""Runs a command and prints, as JSON, its wall time and the peak of the summed PSS of all its processes.

python services/benchmarks/peak_pss.py vlmpress demo --out build/demo

PSS counts a page shared by n processes as 1/n in each, so the sum is what the command really takes.
Linux only.
"""

import json
import subprocess
import sys
import time

import psutil

INTERVAL_S = 1.0


def pss_bytes(process: psutil.Process) -> int:
    """PSS of a process in bytes; 0 when it has ended."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def main() -> int:
    """Runs the rest of the command line."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 2 if len(sys.argv) < 2 else 0
    start_s = time.monotonic()
    child = subprocess.Popen(sys.argv[1:])
    root, peak, peak_processes = psutil.Process(child.pid), 0, 0
    while child.poll() is None:
        try:
            tree = [root, *root.children(recursive=True)]
        except psutil.Error:
            break
        total = sum(pss_bytes(process) for process in tree)
        if total > peak:
            peak, peak_processes = total, len(tree)
        time.sleep(INTERVAL_S)
    code = child.wait()
    figures = {
        "command": sys.argv[1:],
        "exit_code": code,
        "wall_s": round(time.monotonic() - start_s, 1),
        "peak_pss_bytes": peak,
        "processes_at_peak": peak_processes,
    }
    print(json.dumps(figures))
    return code


if __name__ == "__main__":
    sys.exit(main())
