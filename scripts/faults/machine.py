"""The machine gives way: a disk that fills, a folder that becomes read-only, a taken port, a second server.

A small file system of its own is mounted for the disk, which takes root on Linux; elsewhere that fault says so.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scripts.faults.kills import PER_LIFE, Victim, drain, examine, free_port, rows
from scripts.faults.report import Counts, Fault, Unexpected, expect

NOT_HERE = Counts({"not possible here: mounting takes root on Linux": 1})


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """Mounts a file system of that size at `folder`; False where this is not possible."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        possible = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        possible = False
    try:
        yield possible
    finally:
        if possible:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, capture_output=True)


def full_disk(folder: Path, times: int) -> Counts:
    """The disk fills while videos are drawn; then there is room again. Real films, so that ffmpeg meets it too."""
    counts = Counts()
    for life in range(times):
        with small_disk(folder / f"{life}", 220 + 40 * (life % 5)) as possible:
            if not possible:
                return NOT_HERE
            data = folder / f"{life}" / "data"
            data.mkdir()
            victim = Victim(data, FILMS="real", PAUSE="0.01").wait()
            for seed in range(3 * PER_LIFE):
                victim.ask(seed)
            _wait_until_full(victim, data)
            remount(folder / f"{life}", "size=60m")
            victim.quit()
            accepted = victim.accepted
            counts["videos accepted"] += len(accepted)
            examine(data, accepted)
            failed = rows(data, "SELECT data FROM log WHERE kind = 'failed'")
            expect(
                all("disk" in entry for (entry,) in failed), f"a failure without a sentence about the disk: {failed}"
            )
            counts["said so"] += len(failed)
            last = Victim(data, PAUSE="0").wait()
            while rows(data, "SELECT 1 FROM jobs WHERE status IN ('queued', 'running')"):
                time.sleep(0.05)
            last.quit()
            ends = examine(data, accepted)
            counts["drawn once there was room"] += ends["done"]
            counts["disks filled"] += 1
    return counts


def _wait_until_full(victim: Victim, data: Path, seconds: float = 120) -> None:
    """Until something failed for want of room, the worker waits, or new videos are refused."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and victim.process.poll() is None:
        if "queue is paused" in victim.errors or rows(data, "SELECT 1 FROM jobs WHERE status = 'failed'"):
            return
        time.sleep(0.05)
    with suppress(Unexpected):
        raise Unexpected("the disk did not fill")


def read_only(folder: Path, times: int) -> Counts:
    """The data folder is read-only from the start, and becomes so while a video is drawn."""
    counts = Counts()
    for life in range(times):
        with small_disk(folder / f"{life}", 20_000) as possible:
            if not possible:
                return NOT_HERE
            data = folder / f"{life}" / "data"
            data.mkdir()
            victim = Victim(data).wait()
            for seed in range(PER_LIFE):
                victim.ask(seed)
            while len(victim.accepted) < PER_LIFE:
                time.sleep(0.01)
            with suppress(subprocess.CalledProcessError):  # busy: a file is open for writing
                remount(folder / f"{life}", "ro")
                counts["became read-only"] += 1
            victim.kill()
            with suppress(subprocess.CalledProcessError):
                remount(folder / f"{life}", "ro")
            counts["refused at the start"] += _refused(data, "cannot be used")
            remount(folder / f"{life}", "rw")
            drain(data, victim.accepted)
    return counts


def two_servers(folder: Path, times: int) -> Counts:
    """Several processes start on one folder at once: one of them serves, the others say why not."""
    counts = Counts()
    for life in range(times):
        data = folder / f"{life}"
        data.mkdir()
        first = Victim(data).wait()
        counts["second refused"] += _refused(data, "Another server uses")
        first.kill()
        third = Victim(data).wait()
        counts["next one started"] += 1
        third.quit()
    return counts


def _refused(data: Path, words: str) -> int:
    try:
        Victim(data).wait().kill()
    except Unexpected as refusal:
        expect(words in str(refusal), f"{words!r} was not said: {refusal}")
        return 1
    raise Unexpected("a server started where it should have refused")


def ports(folder: Path, times: int) -> Counts:
    """A port that is taken, ports that do not exist."""
    from cogvideo.errors import CapacityError, RequestError
    from cogvideo.web.server import free_port as choose

    counts = Counts()
    for _ in range(times):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            try:
                choose("127.0.0.1", port, search=False)
            except CapacityError as error:
                expect(str(port) in error.en and "--port" in error.en, error.en)
                counts["taken: said"] += 1
            if port < 65535:
                expect(choose("127.0.0.1", port, search=True) != port, "the taken port was chosen")
                counts["taken: another one"] += 1
    expect(counts["taken: said"] == times, "a taken port was chosen")
    for wrong in (-1, 0, 65536, 10**9):
        try:
            choose("127.0.0.1", wrong, search=True)
        except RequestError as error:
            expect(str(wrong) in error.en, error.en)
            counts["impossible: said"] += 1
    expect(counts["impossible: said"] == 4, "an impossible port was taken")
    expect(choose("127.0.0.1", free_port(), search=False), "a free port was refused")
    return counts


FAULTS = (
    Fault(
        "full disk",
        "no job lost, failures say so, the rest is drawn once there is room",
        "不丢任务，失败有说明，腾出空间后继续",
        full_disk,
        small=1,
        full=20,
    ),
    Fault(
        "read-only data folder",
        "a start is refused with a sentence; nothing is lost",
        "启动被拒并说明，不丢数据",
        read_only,
        small=1,
        full=10,
    ),
    Fault(
        "two servers on one folder",
        "the second is refused, the next starts once the first is gone",
        "第二个被拒，第一个结束后可启动",
        two_servers,
        small=1,
        full=20,
    ),
    Fault(
        "taken and impossible ports",
        "a sentence, or the next free port",
        "一句话，或下一个可用端口",
        ports,
        small=3,
        full=200,
    ),
)
