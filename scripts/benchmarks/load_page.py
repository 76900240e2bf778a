"""How the page bears many users: 50 people watch one job while 200 more ask for theirs. Prints figures; needs no model.

python scripts/benchmarks/load_page.py [--watchers 50] [--requests 200] [--within 2] [--rounds 3] [--tokens 150]
                            [--json assets/bench/page.json]
Each round does the same, so memory is flat where the rounds end alike. `server at work` is processor time: it says
what an answer would take on a machine that does nothing else. An event that is lost, doubled or out of order, and two
jobs at a time, end it with an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]
FINAL = ("done", "stopped", "failed", "interrupted")
Value = dict[str, Any]
PROMISE = 300
"""Milliseconds within which the page should answer, whatever else goes on."""
BACK = 2000
"""Milliseconds within which whoever opens the link of a job has it on the screen."""


class Server:
    """tests/support/serve_fake.py in a process of its own, and what the system knows about it (Linux)."""

    def __init__(self, data: Path, waiting: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, str(ROOT / "tests" / "support" / "serve_fake.py"), str(data), str(self.port)]
        command += ["--waiting", str(waiting)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and any(line.strip() == "up" for line in self.process.stdout)
        self.order("open")

    def order(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def memory(self) -> int:
        """MiB resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024

    def busy(self) -> float:
        """Seconds of processor time so far, of all threads."""
        times = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(OSError):  # a thread that ended a moment ago
                times += int((task / "schedstat").read_text().split()[0])
        return times / 1e9


async def call(client: httpx.AsyncClient, name: str, *values: Any) -> Any:
    """One call of a named endpoint; None where it was refused."""
    started = await client.post(f"gradio_api/call/{name}", json={"data": values})
    answer = await client.get(f"gradio_api/call/{name}/{started.json()['event_id']}")
    _, _, end = answer.text.partition("event: complete\ndata: ")
    return json.loads(end.splitlines()[0])[0] if end else None


async def watch(client: httpx.AsyncClient, job: str) -> tuple[list[Value], float]:
    """Everything that one watcher was told, each time as the whole picture it then had, and seconds to the first."""
    seen: list[Value] = []
    before = time.perf_counter()
    first = 0.0
    async with client.stream("GET", f"watch/{job}") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.perf_counter() - before
                seen.append({**(seen[-1] if seen else {}), **json.loads(line[6:])})
    return seen, first


def check(seen: list[Value]) -> None:
    """Nothing came twice, nothing went back, nothing that stays was lost, and it ended once."""
    assert all(before != after for before, after in pairwise(seen))
    for name in ("done", "level", "count"):
        values = [value[name] for value in seen]
        assert values == sorted(values), name
    for before, after in pairwise(seen):
        assert after["keyframes"][: len(before["keyframes"])] == before["keyframes"]
    assert [value["status"] in FINAL for value in seen].index(True) == len(seen) - 1
    last = seen[-1]
    assert (last["status"], len(last["keyframes"]), last["level"], last["count"]) == ("done", 5, 3, 33)
    assert last["done"] == last["total"] and last["video"] == "final.mp4"


def check_log(data: Path, jobs: int) -> None:
    """Every job was queued, begun and done once, has every keyframe once, and its work overlapped no other."""
    with sqlite3.connect(data / "jobs.sqlite") as base:
        rows = base.execute("SELECT job, kind, COUNT(*) FROM log GROUP BY job, kind").fetchall()
    counts: dict[str, Counter[str]] = {}
    for job, kind, count in rows:
        counts.setdefault(job, Counter())[kind] = count
    assert len(counts) == jobs
    for count in counts.values():
        assert (count["queued"], count["running"], count["done"], count["keyframe"]) == (1, 1, 1, 5), count
    words = [line.split() for line in (data / "work.log").read_text().splitlines()]
    assert [word for word, _ in words] == ["begin", "end"] * jobs
    assert all(begin[1] == end[1] for begin, end in zip(words[::2], words[1::2], strict=True))


async def ask(client: httpx.AsyncClient, seed: int, after: float) -> Any:
    """A video's job, asked for `after` so many seconds; None where it was refused."""
    await asyncio.sleep(after)
    return await call(client, "make_video", "小猫", seed, 5, 4, False, 3, "")


async def probe(client: httpx.AsyncClient, path: str, server: Server, done: asyncio.Event) -> list[tuple[float, float]]:
    """Milliseconds that an answer takes, and how long the server worked meanwhile, again and again."""
    times: list[tuple[float, float]] = []
    while not done.is_set():
        before, busy = time.perf_counter(), server.busy()
        (await client.get(path)).raise_for_status()
        times.append((1000 * (time.perf_counter() - before), 1000 * (server.busy() - busy)))
        await asyncio.sleep(0.1)
    return times


async def come_back(client: httpx.AsyncClient, job: str, done: asyncio.Event) -> list[float]:
    """Milliseconds until another device that opens the link has the page and the job as it is, again and again."""
    times: list[float] = []
    while not done.is_set():
        before = time.perf_counter()
        (await client.get("", params={"job": job})).raise_for_status()
        async with client.stream("GET", f"watch/{job}") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    times.append(1000 * (time.perf_counter() - before))
                    break
        await asyncio.sleep(0.5)
    return times


def quantiles(values: list[float]) -> dict[str, float]:
    """Milliseconds, as figures for people."""
    worst = statistics.quantiles(values, n=20)[-1]
    figures = {"median": statistics.median(values), "95 %": worst, "worst": max(values)}
    return {name: round(value, 1) for name, value in figures.items()}


def answers(times: list[tuple[float, float]]) -> Value:
    """What `probe` has measured: how long answers took, how many too long, and the server's own work for them."""
    walls = [wall for wall, _ in times]
    late = sum(wall > PROMISE for wall in walls)
    return {
        "asked": len(walls),
        f"later than {PROMISE} ms": late,
        "ms": quantiles(walls),
        "server at work, ms": quantiles([busy for _, busy in times]),
    }


async def one_round(client: httpx.AsyncClient, server: Server, options: argparse.Namespace) -> Value:
    """The figures of a round. Raises AssertionError where anything was lost, doubled or out of order."""
    requests = options.requests
    server.order(f"pace {options.tokens}")
    busy, before = server.busy(), time.perf_counter()
    first = await call(client, "make_video", "熊猫", 1, 33, 4, False, 3, "")
    done = asyncio.Event()
    probes = [asyncio.create_task(probe(client, path, server, done)) for path in ("", "alive", f"now/{first['id']}")]
    devices = asyncio.create_task(come_back(client, first["id"], done))
    tails = [asyncio.create_task(watch(client, first["id"])) for _ in range(options.watchers)]
    asked = asyncio.gather(*(ask(client, seed, options.within * seed / requests) for seed in range(requests)))
    accepted = [job for job in await asked if job]
    taken = time.perf_counter() - before
    told = await asyncio.gather(*tails)
    watched = time.perf_counter() - before
    done.set()
    page, alive, now = [answers(await each) for each in probes]
    found = await devices
    for seen, _ in told:
        check(seen)
    updates = [len(seen) for seen, _ in told]
    figures: Value = {
        "requests": {
            "asked": requests,
            "within seconds": options.within,
            "taken": len(accepted),
            "seconds": round(taken, 1),
        },
        "page": page,
        "sign of life": alive,
        "question of a hidden tab": now,
        "another device with the link has page and job": {
            "asked": len(found),
            f"later than {BACK} ms": sum(each > BACK for each in found),
            "ms": quantiles(found),
        },
        "updates of a watcher, none lost or doubled": [min(updates), max(updates)],
        "first update, ms at most": round(1000 * max(first for _, first in told)),
        "server busy, s": [round(server.busy() - busy, 1), "of", round(watched, 1)],
        "memory, MiB": {"busiest": server.memory()},
        "load average": round(os.getloadavg()[0], 1),
    }
    server.order("pace 0")
    for job in accepted:
        seen, _ = await watch(client, job["id"])
        assert seen[-1]["status"] == "done"
    figures["memory, MiB"]["all done"] = server.memory()
    return figures


async def measure(server: Server, data: Path, options: argparse.Namespace) -> Value:
    """The figures of all rounds."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # as many people, not as one
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}/", timeout=300, limits=limits) as client:
        (await client.get("")).raise_for_status()
        figures: Value = {"memory at the start, MiB": server.memory(), "rounds": []}
        for _ in range(options.rounds):
            figures["rounds"].append(await one_round(client, server, options))
            print(json.dumps(figures["rounds"][-1], ensure_ascii=False, indent=1), flush=True)
    jobs = sum(each["requests"]["taken"] + 1 for each in figures["rounds"])
    check_log(data, jobs)
    ends = [each["memory, MiB"]["all done"] for each in figures["rounds"]]
    later = ends[len(ends) // 3 :]  # pools and caches fill in the first rounds
    growth = (later[-1] - later[0]) / max(1, len(later) - 1)
    return figures | {
        "jobs begun and ended once each, never two at a time": jobs,
        "memory grows by, MiB a round": round(growth, 1),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": "python scripts/benchmarks/load_page.py " + " ".join(sys.argv[1:]),
    }


def main() -> None:
    """Starts a server of its own in an empty folder, measures it, and ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watchers", type=int, default=50)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--within", type=float, default=2, help="seconds over which the requests come; 0: all at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=float, default=150, help="tokens a second of the pretended model")
    parser.add_argument("--json", type=Path, help="write the figures into this file too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        server = Server(data, options.requests)
        try:
            figures = asyncio.run(measure(server, data, options))
        finally:
            server.process.kill()
            server.process.wait()
    text = json.dumps(figures, ensure_ascii=False, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
