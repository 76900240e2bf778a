"""Follow-up jobs: the request and the stored tokens of a finished job become the next request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from cogvideo.config import FRAME_COUNTS, MAX_SEED
from cogvideo.errors import RequestError
from cogvideo.jobs.service import JobService
from cogvideo.jobs.state import JobState
from cogvideo.messages import message
from cogvideo.request import VideoRequest, new_seed
from cogvideo.token_frames import TokenFrames


class FollowUp(StrEnum):
    """What to do with a finished job. The values are the names used by the page and the API."""

    ADD_FRAMES = "finer"
    RESAMPLE_INTERPOLATION = "between"
    UPSCALE = "enlarge"
    RESUME = "resume"
    NEXT_SEED = "next"
    REPEAT = "again"
    FINISH_DRAFTS = "finish"
    SMALLER_MEMORY = "smaller"

    @classmethod
    def parse(cls, name: str) -> FollowUp:
        """Return the follow-up of that name. Raises RequestError."""
        try:
            return cls(name)
        except ValueError:
            raise RequestError(
                *message("follow_ups.invalid_change", name=name, allowed_zh="、".join(cls), allowed_en=", ".join(cls))
            ) from None


def submit_follow_up(
    jobs: JobService, job: str, action: FollowUp, key: str, drafts: Sequence[int] = ()
) -> list[JobState]:
    """Queue the follow-up of a finished job. Raises CogVideoError.

    `drafts`: numbers (from 0) of the drafts to finish. SMALLER_MEMORY repeats a failed job under the memory preset
    that its error named.
    """
    state = jobs.state(job)
    if state.active:
        raise RequestError(*message("follow_ups.video_not_finished"))
    memory = state.memory
    if action == FollowUp.FINISH_DRAFTS:
        requests = draft_requests(state.request, {draft: jobs.tokens(job, draft) for draft in drafts})
    elif action == FollowUp.SMALLER_MEMORY:
        requests, memory = [state.request], state.next_preset
    else:
        requests = [follow_up_request(state.request, action, jobs.tokens(job))]
    return jobs.submit_all(requests, key, state.embed_settings, state.model, memory)


def follow_up_request(request: VideoRequest, action: FollowUp, tokens: TokenFrames | None = None) -> VideoRequest:
    """Return the request with one change. `tokens`: stored tokens of the job, which are not generated again.

    FINISH_DRAFTS and SMALLER_MEMORY return the request unchanged: they need more than a request.
    """
    match action:
        case FollowUp.NEXT_SEED:
            seed = (request.seed + 1) % (MAX_SEED + 1)
            return replace(request, seed=seed, interpolation_seed=None, initial_tokens=None)
        case FollowUp.ADD_FRAMES:
            count = FRAME_COUNTS[min(request.rounds + 1, len(FRAME_COUNTS) - 1)]
            return replace(request, num_frames=count, initial_tokens=_usable_tokens(tokens, count))
        case FollowUp.RESUME:
            return replace(request, initial_tokens=_usable_tokens(tokens, request.num_frames))
        case FollowUp.RESAMPLE_INTERPOLATION:
            return replace(request, interpolation_seed=new_seed(), initial_tokens=keyframe_tokens(tokens))
        case FollowUp.UPSCALE:
            return replace(request, superres=True, initial_tokens=_usable_tokens(tokens, request.num_frames))
    return request


def draft_requests(request: VideoRequest, chosen: Mapping[int, TokenFrames | None]) -> list[VideoRequest]:
    """Return one request per chosen draft, each with its own seed. Raises RequestError if none is chosen."""
    if not chosen or not all(0 <= draft < request.num_drafts for draft in chosen):
        raise RequestError(*message("follow_ups.no_draft_chosen", num_drafts=request.num_drafts))
    return [
        replace(
            request,
            num_drafts=1,
            seed=request.seeds[draft],
            initial_tokens=_usable_tokens(tokens, request.num_frames),
        )
        for draft, tokens in chosen.items()
    ]


def keyframe_tokens(tokens: TokenFrames | None) -> TokenFrames | None:
    """Return the five keyframes among all frames of a video. Returns None if they are not complete."""
    if tokens is None or tokens.num_frames not in FRAME_COUNTS:
        return None
    return TokenFrames.of(tokens.rows()[:: (tokens.num_frames - 1) // (FRAME_COUNTS[0] - 1)])


def stored_tokens(jobs: JobService, job: str) -> TokenFrames:
    """Return the tokens of a job. Raises RequestError if the job or its tokens do not exist."""
    jobs.state(job)
    tokens = jobs.tokens(job)
    if tokens is None:
        raise RequestError(*message("follow_ups.no_stored_tokens"))
    return tokens


def _usable_tokens(tokens: TokenFrames | None, num_frames: int) -> TokenFrames | None:
    usable = tokens is not None and tokens.num_frames in FRAME_COUNTS and tokens.num_frames <= num_frames
    return tokens if usable else None
