"""Many people reach the network through a proxy; the page on their own machine does not need it."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from cogvideo.jobs.service import JobService
from cogvideo.web import server
from tests.support.fakes import PRESET, FakePipeline, PlainFilm
from tests.support.ports import free_port


def test_server_starts_with_unreachable_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("no_proxy", "example.org")
    port = free_port()
    jobs = JobService(tmp_path, PRESET, lambda: FakePipeline(), PlainFilm)
    ui = server.serve(jobs, "127.0.0.1", port)
    try:
        assert httpx.get(f"http://127.0.0.1:{port}/alive", trust_env=False).json() == {"alive": True}
        assert httpx.get(f"http://127.0.0.1:{port}/alive").json() == {"alive": True}
        assert os.environ["no_proxy"].startswith("example.org,")
    finally:
        ui.close()
        jobs.close()
