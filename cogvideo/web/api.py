"""The API: functions that become named endpoints for gradio_client, curl and MCP. No Gradio.

The docstrings of the endpoints are part of the API description. The API has no functions that the page lacks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call

from cogvideo.config import MAX_DRAFTS
from cogvideo.errors import RequestError
from cogvideo.jobs.follow_ups import FollowUp, stored_tokens, submit_follow_up
from cogvideo.jobs.log_entries import JsonObject
from cogvideo.jobs.service import JobService, new_key
from cogvideo.jobs.state import JobState
from cogvideo.messages import BilingualText, message
from cogvideo.request import VideoRequest, new_seed
from cogvideo.token_frames import last_frame
from cogvideo.web.form import Form

Endpoint = Callable[..., JsonObject]

TYPE_NAMES: dict[str, BilingualText] = {
    "string": message("api.text"),
    "int": message("api.whole_number"),
    "float": message("api.number"),
    "bool": message("api.true_false"),
}
"""First word of pydantic's error types -> the expected type."""


def endpoints(jobs: JobService) -> list[Endpoint]:
    """Return all endpoints. They raise CogVideoError, also for arguments of the wrong type."""
    return [validated(endpoint) for endpoint in (*_submitting(jobs), *_managing(jobs), *_following(jobs))]


def validated(endpoint: Endpoint) -> Endpoint:
    """Check the arguments of each call against the endpoint's annotations.

    Types are strict (True is not an int; 1 is a valid float). Unknown and missing arguments raise RequestError.
    """
    checked = validate_call(config=ConfigDict(strict=True))(endpoint)
    names = argument_names(endpoint)

    @functools.wraps(endpoint)
    def wrapper(*values: Any, **named: Any) -> JsonObject:
        try:
            return checked(*values, **named)
        except ValidationError as error:
            raise _argument_error(error, names) from error

    return wrapper


def argument_names(endpoint: Endpoint) -> list[str]:
    """Return the names of an endpoint's arguments, in order."""
    return [name for name in endpoint.__annotations__ if name != "return"]


def _argument_error(error: ValidationError, names: list[str]) -> RequestError:
    """Describe the first invalid argument: its name, its value and what is allowed."""
    details = error.errors(include_url=False)[0]
    place = details["loc"][0]  # position or name
    name = names[place] if isinstance(place, int) and place < len(names) else str(place)
    expected = TYPE_NAMES.get(details["type"].partition("_")[0])
    if expected is None:
        allowed = ", ".join(names)
        return RequestError(*message("api.wrong_arguments", name=name, allowed=allowed))
    value = repr(details["input"])
    value = value if len(value) <= 80 else f"{value[:80]}…"
    return RequestError(
        *message("api.invalid_argument", name=name, value=value, expected_zh=expected[0], expected_en=expected[1])
    )


def _submitting(jobs: JobService) -> list[Endpoint]:
    default = Form.default(jobs.preset)

    def make_video(
        prompt: str,
        seed: int = -1,
        frames: int = 33,
        seconds: float = 4.0,
        superres: bool = default.superres,
        guidance: float = 0.0,
        key: str = "",
    ) -> JsonObject:
        """Submit a video of a Chinese prompt.

        Args:
            prompt: description of the video, in Chinese
            seed: 0 to 4294967295; -1 for a random one
            frames: 5, 9, 17 or 33
            seconds: 4, 2, 1 or 0.5
            superres: whether to upscale the frames three times at the end
            guidance: guidance scale; 1 switches guidance off, 0 means the model's default
            key: secret that allows stopping and deleting the video; empty for a new one
        """
        form = Form(prompt, _seed(seed), frames, seconds, guidance or default.guidance_scale, superres=superres)
        return _submit(jobs, replace(form, top_k=default.top_k).request(jobs.preset.sampling), key)

    def draft_video(prompt: str, seed: int = -1, drafts: int = MAX_DRAFTS, key: str = "") -> JsonObject:
        """Submit drafts of a prompt: only the keyframes of several videos. Finish some of them with `change_video`.

        Args:
            prompt: description of the video, in Chinese
            seed: of the first draft, the others follow; -1 for a random one
            drafts: 1 to 4
            key: secret that allows stopping and deleting the drafts; empty for a new one
        """
        request = replace(default, prompt=prompt, seed=_seed(seed)).request(jobs.preset.sampling)
        return _submit(jobs, replace(request, num_drafts=drafts), key)

    return [make_video, draft_video]


def _submit(jobs: JobService, request: VideoRequest, key: str, model: str | None = None) -> JsonObject:
    key = key or new_key()
    state = jobs.submit(request, key, model=model)
    return {"id": state.id, "key": key, "seed": state.request.seed}


def _seed(seed: int) -> int:
    return new_seed() if seed == -1 else seed


def _managing(jobs: JobService) -> list[Endpoint]:
    def video(id: str) -> JsonObject:
        """Return the progress of a video, and the address of its file once it exists.

        Args:
            id: as returned by `make_video`
        """
        return _progress_json(jobs.state(id))

    def stop_video(id: str, key: str, after_level: bool = False) -> JsonObject:
        """Stop a video. Completed parts are kept.

        Args:
            id: as returned by `make_video`
            key: as returned by `make_video`
            after_level: whether to complete the current round first
        """
        jobs.stop(id, key, after_level)
        return {"id": id}

    def delete_video(id: str, key: str) -> JsonObject:
        """Delete a video and its files.

        Args:
            id: as returned by `make_video`
            key: as returned by `make_video`
        """
        jobs.delete(id, key)
        return {"id": id}

    return [video, stop_video, delete_video]


def _following(jobs: JobService) -> list[Endpoint]:
    def continue_video(id: str, prompt: str = "", seed: int = -1, key: str = "") -> JsonObject:
        """Submit a video that starts with the last frame of another one.

        Args:
            id: of a finished video, as returned by `make_video`
            prompt: description of what happens next, in Chinese; empty for the same prompt
            seed: 0 to 4294967295; -1 for a random one
            key: secret that allows stopping and deleting the new video; empty for a new one
        """
        state = jobs.state(id)
        request = replace(
            state.request,
            prompt=prompt or state.request.prompt,
            seed=_seed(seed),
            interpolation_seed=None,
            num_drafts=1,
            initial_tokens=None,
            first_frame=last_frame(stored_tokens(jobs, id)),
        )
        return _submit(jobs, request, key, state.model)

    def change_video(id: str, change: str, key: str = "", drafts: str = "") -> JsonObject:
        """Submit a follow-up of a finished video. Existing tokens are not generated again.

        Args:
            id: as returned by `make_video`
            change: "finer" (more frames), "between" (other frames between the same keyframes), "enlarge" (upscale),
                "resume" (after a stop), "next" (the next seed), "again" (the same request), "smaller" (after running
                out of memory), or "finish" for drafts
            key: secret that allows stopping and deleting the new videos; empty for a new one
            drafts: for "finish", the numbers of the chosen drafts, such as "1,3"
        """
        key = key or new_key()
        chosen = [number - 1 for number in _draft_numbers(drafts)]
        states = submit_follow_up(jobs, id, FollowUp.parse(change), key, chosen)
        return {"ids": [state.id for state in states], "key": key}

    return [continue_video, change_video]


def _progress_json(state: JobState) -> JsonObject:
    return {
        "id": state.id,
        "status": state.status,
        "stage": state.stage,
        "done": state.tokens_done,
        "total": state.tokens_total,
        "seconds_left": state.seconds_left,
        "place": state.queue_position,
        "error": state.error,
        "notes": state.notes,
        "model": state.model,
        "file": f"media/{state.id}/{state.video}" if state.video else None,
    }


def _draft_numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",") if number.strip()]
    except ValueError:
        raise RequestError(*message("api.invalid_drafts", text=text)) from None
