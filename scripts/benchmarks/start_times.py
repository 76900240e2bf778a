"""How long things take to start: the command line's help, and the page until it answers. Prints medians of some runs.

python scripts/benchmarks/start_times.py [--runs 5] [--json FILE]. Beside the seconds on the clock stand those of the
processor, which a machine takes that does nothing else. Each page has a data folder of its own, which is empty.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import psutil

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {"help": 0.5, "page": 8.0}
"""Seconds that each may take."""

Times = tuple[float, float]
"""Seconds on the clock and of the processor, until it is there."""


def help_page() -> Times:
    """`python -m cogvideo --help`, until it has ended."""
    began, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-m", "cogvideo", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, spent


def page() -> Times:
    """`python app.py`, from the start of the process until the whole page was sent."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ask = build_opener(ProxyHandler({}))
    with tempfile.TemporaryDirectory() as data:
        words = ["app.py", "--model", "mini", "--port", str(port), "--data", data, "--no-browser", "--no-preload"]
        began = time.perf_counter()
        server = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            while True:
                try:
                    ask.open(f"http://127.0.0.1:{port}/", timeout=30).read()
                    break
                except (URLError, OSError):
                    if server.poll() is not None:
                        raise RuntimeError("the page did not start") from None
                    time.sleep(0.05)
            taken = time.perf_counter() - began
            spent = psutil.Process(server.pid).cpu_times()
        finally:
            server.terminate()
            server.wait()
    return taken, spent.user + spent.system


def measure(start: Callable[[], Times], runs: int) -> Times:
    """Medians of both figures. The first run, which fills caches of files, does not count."""
    start()
    clock, processor = zip(*(start() for _ in range(runs)), strict=True)
    return statistics.median(clock), statistics.median(processor)


def main() -> int:
    """Prints the figures; 1 where the processor alone took longer than the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    found = {name: measure(start, options.runs) for name, start in (("help", help_page), ("page", page))}
    for name, (clock, processor) in found.items():
        print(f"{name}: {clock:.2f} s, {processor:.2f} s of the processor (limit {LIMITS[name]:g} s)")
    if options.json:
        figures = {name: {"seconds": round(c, 3), "processor": round(p, 3)} for name, (c, p) in found.items()}
        dated = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "cores": os.cpu_count(), **figures}
        options.json.write_text(json.dumps(dated, indent=1) + "\n", encoding="utf-8")
    return int(any(processor > LIMITS[name] for name, (_, processor) in found.items()))


if __name__ == "__main__":
    sys.exit(main())
