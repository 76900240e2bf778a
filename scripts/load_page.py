"""How the page bears many users: 50 followers of one job, 200 requests at once. Prints figures; needs no model.

python scripts/load_page.py [--followers 50] [--requests 200]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
LOST: list[str] = []
"""Calls whose connection was lost."""


async def call(client: httpx.AsyncClient, name: str, *values: Any) -> Any:
    """One call of a named endpoint; None where it was refused or the connection was lost."""
    try:
        started = await client.post(f"gradio_api/call/{name}", json={"data": values})
        answer = await client.get(f"gradio_api/call/{name}/{started.json()['event_id']}")
    except httpx.TransportError:
        LOST.append(name)
        return None
    lines = answer.text.splitlines()
    return json.loads(lines[1].removeprefix("data: "))[0] if lines[0] == "event: complete" else None


async def follow(client: httpx.AsyncClient, job: str) -> list[int]:
    """Tokens drawn, as one follower saw them, until the job is final."""
    seen: list[int] = []
    while True:
        video = await call(client, "video", job)
        if video is None:
            continue
        seen.append(video["done"])
        if video["status"] not in ("queued", "running"):
            return seen


async def answers(client: httpx.AsyncClient, done: asyncio.Event) -> list[float]:
    """Milliseconds that the page itself takes, again and again."""
    times: list[float] = []
    while not done.is_set():
        before = time.perf_counter()
        (await client.get("")).raise_for_status()
        times.append(1000 * (time.perf_counter() - before))
        await asyncio.sleep(0.1)
    return times


def resident(server: subprocess.Popen[str]) -> int:
    """MiB of memory that the server holds (Linux)."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024


async def measure(url: str, server: subprocess.Popen[str], followers: int, requests: int) -> None:
    def order(words: str) -> None:
        assert server.stdin is not None
        server.stdin.write(words + "\n")
        server.stdin.flush()

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=100)) as client:
        first = await call(client, "make_video", "熊猫", 1, 33, 4, True, 3, "")
        before = resident(server)
        done = asyncio.Event()
        probe = asyncio.create_task(answers(client, done))
        tails = [asyncio.create_task(follow(client, first["id"])) for _ in range(followers)]
        asked = await asyncio.gather(
            *(call(client, "make_video", "小猫", seed, 5, 4, True, 3, "") for seed in range(requests))
        )
        accepted = [job for job in asked if job]
        print(f"{requests} requests: {len(accepted)} accepted, {requests - len(accepted)} not taken")
        order("open")
        for seen in await asyncio.gather(*tails):
            assert seen == sorted(seen)
        ends = [(await follow(client, job["id"]))[-1] for job in accepted]
        assert len(set(ends)) == 1 and ends[0] > 0
        done.set()
        times = await probe
        worst = statistics.quantiles(times, n=20)[-1]
        print(f"page: median {statistics.median(times):.0f} ms, 95 % below {worst:.0f} ms, {len(times)} loads")
        print(f"connections lost and asked again: {len(LOST)}")
        print(f"memory: {before} MiB before, {resident(server)} MiB after")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--followers", type=int, default=50)
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, str(ROOT / "tests" / "serve_fake.py"), data, str(port)]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None and any(line.strip() == "up" for line in server.stdout)
        try:
            asyncio.run(measure(f"http://127.0.0.1:{port}/", server, options.followers, options.requests))
        finally:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main()
