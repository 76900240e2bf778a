"""How the page bears many users: 50 people watch one job while 200 more ask for theirs. Prints figures; needs no model.

python scripts/load_page.py [--watchers 50] [--requests 200] [--rounds 3] [--tokens 150]
Each round does the same, so memory is flat where the rounds end alike. `server at work` is processor time: it says
what an answer would take on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
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

ROOT = Path(__file__).resolve().parent.parent
FINAL = ("done", "stopped", "failed", "interrupted")
Value = dict[str, Any]


class Server:
    """tests/serve_fake.py in a process of its own, and what the system knows about it (Linux)."""

    def __init__(self, data: Path, waiting: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, str(ROOT / "tests" / "serve_fake.py"), str(data), str(self.port)]
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


async def probe(client: httpx.AsyncClient, path: str, server: Server, done: asyncio.Event) -> list[tuple[float, float]]:
    """Milliseconds that an answer takes, and how long the server worked meanwhile, again and again."""
    times: list[tuple[float, float]] = []
    while not done.is_set():
        before, busy = time.perf_counter(), server.busy()
        (await client.get(path)).raise_for_status()
        times.append((1000 * (time.perf_counter() - before), 1000 * (server.busy() - busy)))
        await asyncio.sleep(0.1)
    return times


def said(name: str, times: list[tuple[float, float]]) -> str:
    def figures(values: list[float]) -> str:
        worst = statistics.quantiles(values, n=20)[-1]
        return f"median {statistics.median(values):.0f} ms, 95 % below {worst:.0f} ms, worst {max(values):.0f} ms"

    return f"  {name}: {figures([wall for wall, _ in times])}; server at work: {figures([busy for _, busy in times])}"


async def one_round(client: httpx.AsyncClient, server: Server, watchers: int, requests: int, tokens: float) -> int:
    """Returns the number of jobs that were taken on."""
    server.order(f"pace {tokens}")
    busy, before = server.busy(), time.perf_counter()
    first = await call(client, "make_video", "熊猫", 1, 33, 4, False, 3, "")
    done = asyncio.Event()
    probes = [asyncio.create_task(probe(client, path, server, done)) for path in ("", "alive")]
    tails = [asyncio.create_task(watch(client, first["id"])) for _ in range(watchers)]
    asked = asyncio.gather(*(call(client, "make_video", "小猫", seed, 5, 4, False, 3, "") for seed in range(requests)))
    accepted = [job for job in await asked if job]
    taken = time.perf_counter() - before
    told = await asyncio.gather(*tails)
    watched = time.perf_counter() - before
    done.set()
    page, alive = [await each for each in probes]
    for seen, _ in told:
        check(seen)
    print(f"  {len(accepted)} of {requests} requests taken in {taken:.1f} s; load average {os.getloadavg()[0]:.1f}")
    print(said("page", page))
    print(said("sign of life", alive))
    updates = [len(seen) for seen, _ in told]
    print(
        f"  {watchers} watchers: {min(updates)} to {max(updates)} updates each, none lost or doubled; "
        f"the first after {1000 * max(first for _, first in told):.0f} ms at most"
    )
    print(f"  server busy {server.busy() - busy:.1f} s of {watched:.1f} s; memory {server.memory()} MiB", flush=True)
    server.order("pace 0")
    for job in accepted:
        seen, _ = await watch(client, job["id"])
        assert seen[-1]["status"] == "done"
    print(f"  memory once all {len(accepted) + 1} jobs are done: {server.memory()} MiB", flush=True)
    return len(accepted) + 1


async def measure(server: Server, data: Path, watchers: int, requests: int, rounds: int, tokens: float) -> None:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # as many people, not as one
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}/", timeout=300, limits=limits) as client:
        (await client.get("")).raise_for_status()
        print(f"memory at the start: {server.memory()} MiB")
        jobs = 0
        for number in range(rounds):
            print(f"round {number + 1}")
            jobs += await one_round(client, server, watchers, requests, tokens)
    check_log(data, jobs)
    print(f"{jobs} jobs: each begun and ended once, none at the same time as another")


def main() -> None:
    """Starts a server of its own in an empty folder, measures it, and ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watchers", type=int, default=50)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=float, default=150, help="tokens a second of the pretended model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        server = Server(data, options.requests)
        try:
            asyncio.run(measure(server, data, options.watchers, options.requests, options.rounds, options.tokens))
        finally:
            server.process.kill()
            server.process.wait()


if __name__ == "__main__":
    main()
