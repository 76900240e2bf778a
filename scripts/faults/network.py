"""Clients that misbehave against a running server: slow readers, malformed bodies, uploads that want to be run.

The server is the real page with a pipeline that draws squares. What is expected: it stays up, answers others, and
nothing of the machine is handed out.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx

from scripts.faults.files import HARMFUL
from scripts.faults.kills import Victim, free_port
from scripts.faults.report import Counts, Fault, expect
from scripts.faults.victim import KEY

MIB = 1024


@contextmanager
def server(folder: Path, **environment: str) -> Iterator[tuple[Victim, int, httpx.Client]]:
    """A running page, its port, and a well-behaved client of it."""
    port = free_port()
    victim = Victim(folder, port, **environment)
    try:
        victim.wait()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/", timeout=120) as client:
            yield victim, port, client
    finally:
        victim.kill()


def resident(victim: Victim) -> int:
    """KiB of memory that the server holds; 0 where the system does not say."""
    status = Path(f"/proc/{victim.process.pid}/status")
    if not status.exists():
        return 0
    return int(next(line for line in status.read_text().splitlines() if line.startswith("VmRSS")).split()[1])


def slow_readers(folder: Path, times: int) -> Counts:
    """Clients that watch a video and ask for the page, and never read; meanwhile others want answers."""
    counts = Counts()
    with server(folder, PAUSE="0.05") as (victim, port, client), ExitStack() as open_ends:
        victim.ask(1)
        while not victim.accepted:
            time.sleep(0.01)
        job = next(iter(victim.accepted))
        client.get("").raise_for_status()
        before = resident(victim)
        for number in range(times):
            slow = open_ends.enter_context(socket.create_connection(("127.0.0.1", port)))
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            path = f"/watch/{job}" if number % 2 else "/"
            slow.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            counts["clients that never read"] += 1
        slowest = 0.0
        while client.post("gradio_api/call/video", json={"data": [job]}).is_success:
            began = time.monotonic()
            client.get("alive").raise_for_status()
            slowest = max(slowest, time.monotonic() - began)
            counts["answers to others"] += 1
            if _status(client, job) == "done" and counts["answers to others"] >= 50:
                break
        grown = (resident(victim) - before) // MIB
        expect(grown < 64 + times // 4, f"the server grew by {grown} MiB")
        expect(slowest < 30, f"somebody waited {slowest:.1f} s")
        expect(victim.process.poll() is None, "the server ended")
        counts["MiB grown"] = max(0, grown)
    return counts


def _status(client: httpx.Client, job: str) -> str:
    began = client.post("gradio_api/call/video", json={"data": [job]}).json()
    answer = client.get(f"gradio_api/call/video/{began['event_id']}").text.splitlines()
    expect(answer[0] == "event: complete", f"no answer: {answer}")
    return str(json.loads(answer[1].removeprefix("data: "))[0]["status"])


def bodies(folder: Path, times: int) -> Counts:
    """Bodies that are no JSON, not the right JSON, too deep or too large, to every endpoint; then a sound one."""
    counts, dice = Counts(), random.Random(10)
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    shapes = [
        *(b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", b'{"data": null}', b'{"data": {}}', b'{"data": []}'),
        *(b'{"prompt": 1}', b'{"x": 1}', b'{"fn_index": 999, "data": [], "session_hash": "x"}'),
        *(b'{"data": [[[[]]]]}', b'{"data": ["\\ud800"]}', b'{"data": [1e999]}'),
        *(b'{"data": ' + b"[" * 50_000, b'{"data": [' + b"1," * 50_000),
        *(json.dumps({"data": [value]}).encode() for value in ("猫" * 10**6, file)),
    ]
    endpoints = ["make_video", "draft_video", "video", "stop_video", "delete_video", "continue_video", "change_video"]
    kinds = ["application/json", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded", ""]
    dead = "http://127.0.0.1:9"  # a proxy that is not there must not keep the page from starting
    with server(folder, http_proxy=dead, HTTP_PROXY=dead) as (victim, _, client):
        for _ in range(times):
            name = dice.choice(endpoints)
            places = ["upload", "queue/join", "call/x", f"run/{name}", *(f"call/{name}", f"call/v2/{name}") * 2]
            address = f"gradio_api/{dice.choice(places)}"
            body = dice.choice(shapes)
            try:
                answer = client.post(address, content=body, headers={"Content-Type": dice.choice(kinds)})
            except httpx.TransportError:  # refused before all of it was sent
                counts["connection closed"] += 1
                continue
            counts[f"status {answer.status_code}"] += 1
            expect("root:" not in answer.text, "a file of the machine was handed out")
            expect(answer.status_code != 500, f"{address} fell over {body[:80]!r}")
        expect(victim.process.poll() is None, "the server ended")
        _still_takes(client)
    return counts


def described(folder: Path, times: int) -> Counts:
    """schemathesis: bodies made from the API's own description, right and wrong, to every endpoint."""
    if find_spec("schemathesis") is None:
        return Counts({"not possible here: schemathesis is not installed (requirements-health.txt)": 1})
    (folder / "data").mkdir()
    with server(folder / "data") as (victim, port, client):
        words = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{port}/gradio_api/openapi.json"),
            *("--include-method", "POST", "--phases", "coverage,fuzzing", "--checks", "not_a_server_error"),
            *("--max-examples", str(times), "--continue-on-failure", "--suppress-health-check", "all"),
            *("--request-timeout", "60", "--report", "json", "--report-json-path", str(folder / "said.json")),
        ]
        environment = os.environ | {"no_proxy": "127.0.0.1"}
        answer = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        expect((folder / "said.json").exists(), answer.stderr[-500:] + answer.stdout[-500:])
        said = json.loads((folder / "said.json").read_text("utf-8"))
        expect(not said["failures"], f"{said['failures']}")
        expect(said["operations"]["tested"] == said["operations"]["selected"] > 0, f"{said['operations']}")
        expect(victim.process.poll() is None, "the server ended")
        _still_takes(client)
    return Counts({"endpoints": said["operations"]["tested"], "bodies": said["test_cases"]["generated"]})


def _still_takes(client: httpx.Client) -> None:
    sound = client.post("gradio_api/call/make_video", json={"data": ["熊猫", 1, 5, 4, False, 0, KEY]})
    expect(sound.is_success, f"a sound body was refused: {sound.status_code}")


def uploads(folder: Path, times: int) -> Counts:
    """Files that want to be run or read: what is uploaded is never shown as a page, and nothing else is reachable."""
    counts = Counts()
    (folder / "data").mkdir()
    with server(folder / "data") as (victim, _, client):
        for _ in range(times):
            for name, content in HARMFUL.items():
                for suffix in (".svg", ".html", ".gif", ".mp4", "/../../../evil.sh"):
                    answer = client.post("gradio_api/upload", files={"files": (f"{name}{suffix}", content)})
                    counts["uploads"] += 1
                    if not answer.is_success:
                        continue
                    path = answer.json()[0]
                    expect("evil.sh" not in path or Path(path).parent.name != "", f"the upload went to {path}")
                    back = client.get(f"gradio_api/file={path}")
                    kind, how = (back.headers.get(name, "") for name in ("content-type", "content-disposition"))
                    inert = "attachment" in how or not kind.startswith(("text/html", "image/svg", "text/xml"))
                    expect(not back.is_success or inert, f"{path} is served as {kind}, {how}")
        places = [
            "/etc/passwd",
            str(folder / "data" / "jobs.sqlite"),
            str(Path(__file__)),
            "../../etc/passwd",
            "file:///etc/passwd",
        ]
        for place in places:
            for address in (
                f"gradio_api/file={place}",
                f"media/{place}/x",
                f"gallery/{place}",
                f"gradio_api/file/{place}",
            ):
                answer = client.get(address)
                expect(
                    not (answer.is_success and len(answer.content) and "<html" not in answer.text),
                    f"{address} gave {answer.text[:80]!r}",
                )
                counts["places asked for"] += 1
        try:
            huge = client.post("gradio_api/upload", files={"files": ("huge.mp4", bytes(65 * 2**20))}).status_code
        except httpx.TransportError:  # refused before all of it was sent
            huge = 413
        expect(huge in (400, 413), f"an upload of 65 MiB was answered with {huge}")
        counts["too large: refused"] += 1
        expect(victim.process.poll() is None, "the server ended")
    return counts


FAULTS = (
    Fault(
        "clients that read slowly or never",
        "others are answered, memory stays flat",
        "其他人照常得到回答，内存不涨",
        slow_readers,
        small=10,
        full=200,
    ),
    Fault(
        "malformed bodies",
        "refused; the server stays up and takes a sound one",
        "拒绝；服务器继续运行，正常请求照样接受",
        bodies,
        small=30,
        full=2_000,
    ),
    Fault(
        "bodies by the API's own description (schemathesis)",
        "no internal error; the server stays up and takes a sound one",
        "没有内部错误；服务器继续运行，正常请求照样接受",
        described,
        small=2,
        full=100,
    ),
    Fault(
        "uploads that want to be run",
        "kept as data, never served as a page; no other file is reachable",
        "只作为数据保存，从不作为网页显示；拿不到其他文件",
        uploads,
        small=1,
        full=10,
    ),
)
