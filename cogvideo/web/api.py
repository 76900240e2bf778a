"""The page's jobs for programs: functions that become named endpoints (gradio_client, curl, MCP). No Gradio.

Their docstrings are what a program sees. Nothing here does what the page cannot do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_type_hints

from cogvideo.config import MAX_DRAFTS, check_type
from cogvideo.errors import RequestError
from cogvideo.jobs.follow_ups import follow_up, kept_tokens
from cogvideo.jobs.service import JobService, new_key
from cogvideo.jobs.state import JobState
from cogvideo.request import VideoRequest, new_seed
from cogvideo.token_frames import last_frame
from cogvideo.web.form import Form

Endpoint = Callable[..., dict[str, Any]]


def endpoints(jobs: JobService) -> list[Endpoint]:
    """One function for each endpoint, by its name. They raise CogVideoError, also for values of another type."""
    return [_checked(endpoint) for endpoint in (*_making(jobs), *_watching(jobs), *_going_on(jobs))]


def _checked(endpoint: Endpoint) -> Endpoint:
    kinds = {name: kind for name, kind in get_type_hints(endpoint).items() if name != "return"}

    @functools.wraps(endpoint)
    def answer(*values: Any, **named: Any) -> dict[str, Any]:
        for name, value in (dict(zip(kinds, values)) | named).items():
            check_type(name, value, kinds[name])
        return endpoint(*values, **named)

    return answer


def _making(jobs: JobService) -> list[Endpoint]:
    usual = Form.default(jobs.preset)

    def make_video(
        prompt: str,
        seed: int = -1,
        frames: int = 33,
        seconds: float = 4.0,
        superres: bool = usual.superres,
        guidance: float = 0.0,
        key: str = "",
    ) -> dict[str, Any]:
        """Ask for a video of a Chinese prompt.

        Args:
            prompt: what to show, in Chinese
            seed: 0 to 4294967295; -1 draws one
            frames: 5, 9, 17 or 33
            seconds: 4, 2, 1 or 0.5
            superres: whether the frames are enlarged three times at the end
            guidance: how strictly the prompt counts; 1 switches guidance off, 0 leaves it to the model
            key: whoever has it may stop and delete the video; empty makes one
        """
        form = Form(prompt, _seed(seed), frames, seconds, guidance or usual.guidance_scale, superres=superres)
        return _submit(jobs, replace(form, top_k=usual.top_k).request(jobs.preset.sampling), key)

    def draft_video(prompt: str, seed: int = -1, drafts: int = MAX_DRAFTS, key: str = "") -> dict[str, Any]:
        """Ask for the keyframes of several videos of one prompt, to finish some of them with `change_video`.

        Args:
            prompt: what to show, in Chinese
            seed: of the first one, the others follow; -1 draws one
            drafts: 1 to 4
            key: whoever has it may stop and delete them; empty makes one
        """
        request = replace(usual, prompt=prompt, seed=_seed(seed)).request(jobs.preset.sampling)
        return _submit(jobs, replace(request, num_drafts=drafts), key)

    return [make_video, draft_video]


def _submit(jobs: JobService, request: VideoRequest, key: str, model: str | None = None) -> dict[str, Any]:
    key = key or new_key()
    view = jobs.submit(request, key, model=model)
    return {"id": view.id, "key": key, "seed": view.request.seed}


def _seed(seed: int) -> int:
    return new_seed() if seed == -1 else seed


def _watching(jobs: JobService) -> list[Endpoint]:
    def video(id: str) -> dict[str, Any]:
        """How far a video is, and where its file lies once there is one.

        Args:
            id: as `make_video` gave it
        """
        return _said(jobs.state(id))

    def stop_video(id: str, key: str, after_level: bool = False) -> dict[str, Any]:
        """Stop a video; what was drawn so far is kept.

        Args:
            id: as `make_video` gave it
            key: as `make_video` gave it
            after_level: whether the round being drawn is completed first
        """
        jobs.stop(id, key, after_level)
        return {"id": id}

    def delete_video(id: str, key: str) -> dict[str, Any]:
        """Delete a video and its files.

        Args:
            id: as `make_video` gave it
            key: as `make_video` gave it
        """
        jobs.delete(id, key)
        return {"id": id}

    return [video, stop_video, delete_video]


def _going_on(jobs: JobService) -> list[Endpoint]:
    def continue_video(id: str, prompt: str = "", seed: int = -1, key: str = "") -> dict[str, Any]:
        """Ask for a video that begins with the last frame of another one.

        Args:
            id: as `make_video` gave it, of a video that has ended
            prompt: what happens next, in Chinese; empty: the same as before
            seed: 0 to 4294967295; -1 draws one
            key: whoever has it may stop and delete the new video; empty makes one
        """
        view = jobs.state(id)
        request = replace(view.request, seed=_seed(seed), interpolation_seed=None, num_drafts=1, initial_tokens=None)
        request = replace(request, prompt=prompt or request.prompt, first_frame=last_frame(kept_tokens(jobs, id)))
        return _submit(jobs, request, key, view.model)

    def change_video(id: str, change: str, key: str = "", drafts: str = "") -> dict[str, Any]:
        """Go on from a video that has ended; what it has drawn is not drawn again.

        Args:
            id: as `make_video` gave it
            change: "finer" (more frames between), "between" (other frames between the same keyframes), "enlarge",
                "resume" (after a stop), "next" (the next seed), "again", or "finish" for drafts
            key: whoever has it may stop and delete the new videos; empty makes one
            drafts: for "finish", the numbers of the chosen drafts, such as "1,3"
        """
        key = key or new_key()
        views = follow_up(jobs, id, change, key, [number - 1 for number in _numbers(drafts)])
        return {"ids": [view.id for view in views], "key": key}

    return [continue_video, change_video]


def _said(view: JobState) -> dict[str, Any]:
    names = ("id", "status", "stage", "done", "total", "seconds_left", "place", "error", "notes", "model")
    said = {name: getattr(view, name) for name in names}
    return {**said, "file": f"media/{view.id}/{view.video}" if view.video else None}


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",") if number.strip()]
    except ValueError:
        raise RequestError(
            f"草稿编号 {text} 无法识别：请写成 1,3 这样的数字。", f"No draft numbers: {text}. Write them as 1,3."
        ) from None
