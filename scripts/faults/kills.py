"""kill -9 of a worker and of a whole server at random moments, and what is on disk after each.

What is expected: every video that was accepted is still known, none was started twice, the database is sound, the log
has neither gap nor double, no half-written file stays behind, and what was waiting runs after the next start.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from scripts.faults.report import Counts, Fault, Unexpected, expect
from scripts.faults.victim import KEY, ROOT, STARTED

FINAL = ("done", "stopped", "failed", "interrupted")
PER_LIFE = 4
"""Videos that each life of the victim is asked for."""
EARLY = 5
"""Every fifth life ends before it is up: what a start repairs is then repaired by the next one."""


class Victim:
    """A process of `scripts.faults.victim`. `accepted`: id -> seed of what it said it had taken."""

    def __init__(self, data: Path, port: int | None = None, **environment: str) -> None:
        self.accepted: dict[str, int] = {}
        words = [sys.executable, "-m", "scripts.faults.victim", str(data), *([str(port)] if port else [])]
        self.process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._errors: list[str] = []
        self._up = threading.Event()
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()

    def wait(self, seconds: float = 300) -> Victim:
        """Returns once it is up. Raises Unexpected where it ends before."""
        while not self._up.wait(0.05):
            expect(self.process.poll() is None, f"the server did not start: {''.join(self._errors)[-2000:]}")
            seconds -= 0.05
            expect(seconds > 0, "the server did not start in time")
        return self

    def ask(self, seed: int) -> None:
        self._order(str(seed))

    def kill(self) -> None:
        self.process.kill()
        self._end()

    def quit(self) -> None:
        """An orderly end: what runs is interrupted, what waits stays."""
        self._order("quit")
        self._end()

    @property
    def up(self) -> bool:
        return self._up.is_set()

    @property
    def errors(self) -> str:
        return "".join(self._errors)

    def _order(self, words: str) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead already
            self.process.stdin.write(words + "\n")
            self.process.stdin.flush()

    def _end(self) -> None:
        for reader in self._readers:
            reader.join()
        self.process.wait()
        with suppress(BrokenPipeError):
            self.process.communicate()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            words = line.split() if line.endswith("\n") else []  # the last words of a killed process may be cut off
            if words == ["up"]:
                self._up.set()
            elif words[:1] == ["accepted"]:
                self.accepted[words[1]] = int(words[2])

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors.extend(self.process.stderr)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows(data: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(data / "jobs.sqlite")) as base:
        return base.execute(query).fetchall()


def examine(data: Path, accepted: Mapping[str, int]) -> Counts:
    """The data folder of a dead server, and what it had promised. Raises Unexpected."""
    expect(rows(data, "PRAGMA integrity_check") == [("ok",)], "the database is damaged")
    status = dict(rows(data, "SELECT id, status FROM jobs"))
    lost = set(accepted) - set(status)
    expect(not lost, f"{len(lost)} accepted videos are gone")
    started = (data / STARTED).read_text().split() if (data / STARTED).exists() else []
    expect(len(started) == len(set(started)), "a video was started twice")
    log = rows(data, "SELECT seq, job, kind, data FROM log ORDER BY seq")
    expect([entry[0] for entry in log] == list(range(1, len(log) + 1)), "the log has a gap")
    for job, now in status.items():
        _examine_log(data, job, now, [(kind, entry) for _, of, kind, entry in log if of == job])
    return Counts(status.values())


def _examine_log(data: Path, job: str, status: str, log: list[tuple[str, str]]) -> None:
    kinds = [kind for kind, _ in log]
    expect(len(set(log)) == len(log), f"doubled entries in the log: {kinds}")
    expect(kinds[:1] == ["queued"], f"a log that does not begin at the beginning: {kinds}")
    expect(kinds.count("running") == int(status != "queued"), f"status {status}, log {kinds}")
    ends = [kind for kind in kinds if kind in FINAL]
    expect(ends == ([status] if status in FINAL else []), f"status {status}, log {kinds}")
    expect(not ends or kinds[-1] in FINAL, f"entries after the end: {kinds}")
    for _, entry in log:
        values = json.loads(entry)
        for name in (values.get(key) for key in ("file", "video", "strip", "poster")):
            expect(name is None or (data / "results" / job / name).stat().st_size, f"{name} is missing")


def drain(data: Path, accepted: Mapping[str, int]) -> Counts:
    """One more life without a blow: what waited is drawn, in order, and nothing half-written is left."""
    last = Victim(data, PAUSE="0").wait()
    while rows(data, "SELECT 1 FROM jobs WHERE status IN ('queued', 'running')"):
        expect(last.process.poll() is None, f"the server ended: {last.errors[-2000:]}")
        time.sleep(0.05)
    last.quit()
    ends = examine(data, accepted)
    expect(set(ends) <= {"done", "interrupted"}, f"unexpected ends: {dict(ends)}")
    seeds = [int(seed) for seed in (data / STARTED).read_text().split()]
    expect(seeds == sorted(seeds), "the videos were not drawn in the order in which they were asked for")
    stray = [path.name for path in (data / "results").rglob("*") if path.name.startswith(".")]
    expect(not stray, f"half-written files stay behind: {stray}")
    return ends


def kill_workers(folder: Path, times: int) -> Counts:
    """A worker without a page, killed within 1.5 seconds of its start; every other life writes real films."""
    data, accepted = folder / "data", dict[str, int]()
    lives = Lives()
    data.mkdir()
    for life in range(times):
        victim = Victim(data, FILMS="real" if life % 2 else "")
        for seed in range(PER_LIFE):
            victim.ask(life * PER_LIFE + seed)
        lives.pass_some(victim, 1.5)
        victim.kill()
        accepted |= victim.accepted
        examine(data, accepted)
    return _sum(accepted, lives.counts, drain(data, accepted))


def kill_servers(folder: Path, times: int) -> Counts:
    """The page's server, killed while clients ask for videos over HTTP."""
    data, accepted = folder / "data", dict[str, int]()
    lives = Lives()
    data.mkdir()
    for life in range(times):
        port = free_port()
        victim = Victim(data, port, FILMS="real")
        client = threading.Thread(target=_ask_over_http, args=(victim, port, life * PER_LIFE, accepted))
        client.start()
        lives.pass_some(victim, 2)
        victim.kill()
        client.join()
        examine(data, accepted)
    return _sum(accepted, lives.counts, drain(data, accepted))


class Lives:
    """The lives of victims that follow each other on one data folder."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._start = 0.0  # seconds that the last start took

    def pass_some(self, victim: Victim, longest: float) -> None:
        """A random part of a life: up to `longest` seconds once it is up, or, every EARLY-th time, of its start."""
        self.counts["kills"] += 1
        if self.counts["kills"] % EARLY == 0:
            time.sleep(random.random() * self._start)
            self.counts["killed while starting"] += not victim.up
        else:
            began = time.monotonic()
            victim.wait()
            self._start = time.monotonic() - began
            time.sleep(random.random() * longest)


def _sum(accepted: Mapping[str, int], lives: Counts, ends: Counts) -> Counts:
    """`examine` was content after each kill, so nothing was lost and nothing started twice."""
    return Counts({"accepted": len(accepted), "lost": 0, "started twice": 0, **lives, **ends})


def _ask_over_http(victim: Victim, port: int, first_seed: int, accepted: dict[str, int]) -> None:
    """Asks until the server is gone; only what was answered counts as accepted."""
    import httpx

    with suppress(Unexpected):  # it was killed before
        victim.wait()
    with (
        suppress(httpx.TransportError, IndexError),
        httpx.Client(base_url=f"http://127.0.0.1:{port}/gradio_api/call/", timeout=60) as client,
    ):
        for seed in range(first_seed, first_seed + PER_LIFE):
            began = client.post("make_video", json={"data": ["熊猫", seed, 9, 4, False, 0, KEY]}).json()
            answer = client.get(f"make_video/{began['event_id']}").text.splitlines()
            if answer[0] == "event: complete":
                accepted[json.loads(answer[1].removeprefix("data: "))[0]["id"]] = seed


FAULTS = (
    Fault(
        "kill -9 of the worker",
        "nothing accepted is lost, nothing starts twice, database and log are sound, what waited is drawn",
        "已接受的不丢，不重复开始，数据库与日志完好，排队的照画",
        kill_workers,
        small=4,
        full=100,
    ),
    Fault(
        "kill -9 of the server",
        "the same, with clients asking over HTTP",
        "同上，客户端通过 HTTP 提交",
        kill_servers,
        small=1,
        full=100,
    ),
)
