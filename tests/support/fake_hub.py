"""A hub for uploads: answers what huggingface_hub requests over HTTP, without a network. No test is in here."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import httpx2
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory

HEAD = "0" * 39 + "1"
NEXT = "0" * 39 + "2"


class FakeHub:
    """One Space, named `space`; `files`: path -> content, None before the Space exists.

    `commits`: the lines of each commit. `authorizations`: what the requests that change something were signed with.
    `refuse`: (method, end of the path) -> status to answer with.
    """

    def __init__(self, space: str, files: dict[str, bytes] | None = None) -> None:
        self.space, self.files = space, files
        self.created: dict[str, Any] = {}
        self.commits: list[list[dict[str, Any]]] = []
        self.authorizations: set[str] = set()
        self.refuse: dict[tuple[str, str], int] = {}

    @contextmanager
    def connected(self) -> Iterator[FakeHub]:
        """Route all requests of huggingface_hub here. Without Xet, whose compiled client opens its own connections."""
        set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(self._answer)))
        try:
            with patch.object(constants, "HF_HUB_DISABLE_XET", True):
                yield self
        finally:
            set_client_factory(default_client_factory)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if path.endswith(("/create", "/commit/main")):
            self.authorizations.add(request.headers.get("authorization", ""))
        for (method, end), status in self.refuse.items():
            if request.method == method and path.endswith(end):
                return httpx2.Response(status, json={"error": "the hub refuses"})
        here = f"/api/spaces/{self.space}"
        routes: dict[tuple[str, str], Callable[[bytes], Any]] = {
            ("POST", "/api/repos/create"): self._create,
            ("POST", "/api/validate-yaml"): lambda _: {"errors": [], "warnings": []},
        }
        if self.files is not None:
            routes |= {
                ("GET", here): lambda _: {"_id": "1", "id": self.space, "sha": HEAD},
                ("GET", f"{here}/tree/{HEAD}"): self._tree,
                ("POST", f"{here}/preupload/main"): self._upload_modes,
                ("POST", f"/spaces/{self.space}.git/info/lfs/objects/batch"): _lfs_batch,
                ("POST", f"{here}/commit/main"): self._commit,
            }
        if (request.method, path) not in routes:
            return httpx2.Response(404, headers={"X-Error-Code": "RepoNotFound"})
        return httpx2.Response(200, json=routes[request.method, path](request.content))

    def _create(self, body: bytes) -> dict[str, str]:
        self.created = json.loads(body)
        if self.files is None:
            self.files = {".gitattributes": b""}
        return {"url": f"https://huggingface.co/spaces/{self.space}"}

    def _tree(self, _: bytes) -> list[dict[str, Any]]:
        assert self.files is not None
        return [
            {"type": "file", "path": path, "size": len(text), "oid": HEAD} for path, text in sorted(self.files.items())
        ]

    def _upload_modes(self, body: bytes) -> dict[str, Any]:
        """Which files go through LFS, and which a .gitignore hides: the one of the request, else that of the Space."""
        assert self.files is not None
        asked = json.loads(body)
        ignored = asked.get("gitIgnore", self.files.get(".gitignore", b"").decode()).split()
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": any(f"/{rule}" in file["path"] for rule in ignored),
                }
                for file in asked["files"]
            ]
        }

    def _commit(self, body: bytes) -> dict[str, str]:
        assert self.files is not None
        lines = [json.loads(line) for line in body.splitlines()]
        self.commits.append(lines)
        for line in lines:
            value = line["value"]
            if line["key"] == "deletedFile":
                del self.files[value["path"]]
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = b"lfs " + value["oid"].encode()
        return {"commitUrl": f"https://huggingface.co/spaces/{self.space}/commit/{NEXT}", "commitOid": NEXT}


def _lfs_batch(body: bytes) -> dict[str, Any]:
    """Every object is there already, so that nothing is sent."""
    objects = json.loads(body)["objects"]
    return {"transfer": "basic", "objects": [{"oid": item["oid"], "size": item["size"]} for item in objects]}
