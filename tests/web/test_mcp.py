"""The page's jobs for language models: its endpoints are tools where Gradio's extra `mcp` is installed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cogvideo.jobs.service import JobService
from cogvideo.web import server
from tests.support.fakes import PRESET, FakePipeline
from tests.support.ports import free_port

pytest.importorskip("mcp", reason="an extra: pip install 'gradio[mcp]'")


async def use(url: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Names and descriptions of the tools; then what each of three calls answers."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async with streamablehttp_client(url) as (read, write, _), ClientSession(read, write) as session:
        await session.initialize()
        tools = {tool.name: tool.description or "" for tool in (await session.list_tools()).tools}

        async def call(name: str, **values: Any) -> dict[str, Any]:
            answer = await session.call_tool(name, values)
            text = answer.content[0].text
            return {"error": text} if answer.isError else json.loads(text.replace("'", '"').replace("None", "null"))

        made = await call("make_video", prompt="一只小猫", seed=7, frames=5)
        assert "id" in made, made
        return tools, [
            made,
            await call("stop_video", id=made["id"], key=made["key"]),
            await call("video", id="nothing"),
        ]


def test_mcp_tools_match_endpoints(tmp_path: Path) -> None:
    jobs = JobService(tmp_path, PRESET, FakePipeline)
    port = free_port()
    ui = server.serve(jobs, "127.0.0.1", port)
    tools, (made, stopped, unknown) = asyncio.run(use(f"http://127.0.0.1:{port}/gradio_api/mcp/"))
    wanted = "make_video draft_video video stop_video delete_video continue_video change_video"
    assert set(tools) == set(wanted.split())
    assert "Chinese prompt" in tools["make_video"]
    assert made["seed"] == 7 and stopped == {"id": made["id"]}
    assert jobs.state(made["id"]).status == "stopped"
    assert "no such video" in unknown["error"]
    ui.close()
    jobs.close()
