"""What can be made of a job that has ended: its request and the tokens it kept -> the next request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from cogvideo.config import FRAME_COUNTS, MAX_SEED
from cogvideo.errors import RequestError
from cogvideo.jobs.service import JobService
from cogvideo.jobs.state import JobState
from cogvideo.request import VideoRequest, new_seed
from cogvideo.token_frames import TokenFrames

CHANGES: Final = ("again", "next", "finer", "resume", "between", "enlarge")


def follow_up(jobs: JobService, job: str, change: str, key: str, drafts: Sequence[int] = ()) -> list[JobState]:
    """Queues what follows from a job that has ended: one of `CHANGES`, "finish" or "smaller". Raises CogVideoError.

    "finish" completes the chosen `drafts`; "smaller" is the same under the memory preset that the failed job named.
    """
    view = jobs.state(job)
    if view.active:
        raise RequestError(
            "这段视频还没有画完：请等它完成，或先停止它。", "This video is still being made: wait for it, or stop it."
        )
    memory = view.memory
    if change == "finish":
        requests = finished(view.request, {draft: jobs.tokens(job, draft) for draft in drafts})
    elif change == "smaller":
        requests, memory = [view.request], view.smaller
    else:
        requests = [changed(view.request, change, jobs.tokens(job))]
    return jobs.submit_all(requests, key, view.comment, view.model, memory)


def changed(request: VideoRequest, change: str, drawn: TokenFrames | None = None) -> VideoRequest:
    """The request with one thing changed, one of `CHANGES`. `drawn`: what the job has drawn; without, all is drawn.

    Raises RequestError where nothing follows from that change.
    """
    if change == "again":
        return request
    if change == "next":
        return replace(request, seed=(request.seed + 1) % (MAX_SEED + 1), interpolation_seed=None, initial_tokens=None)
    if change == "finer":
        frames = FRAME_COUNTS[min(request.rounds + 1, len(FRAME_COUNTS) - 1)]
        return replace(request, num_frames=frames, initial_tokens=_fitting(drawn, frames))
    if change == "resume":
        return replace(request, initial_tokens=_fitting(drawn, request.num_frames))
    if change == "between":
        return replace(request, interpolation_seed=new_seed(), initial_tokens=keyframes(drawn))
    if change == "enlarge":
        return replace(request, superres=True, initial_tokens=_fitting(drawn, request.num_frames))
    raise RequestError(
        f"没有名为 {change} 的操作：可用的有 {'、'.join(CHANGES)}。",
        f"There is no change {change}: there are {', '.join(CHANGES)}.",
    )


def finished(request: VideoRequest, chosen: Mapping[int, TokenFrames | None]) -> list[VideoRequest]:
    """The videos of the chosen drafts, each with its own seed. Raises RequestError where none was chosen."""
    if not chosen or not all(0 <= draft < request.num_drafts for draft in chosen):
        raise RequestError(
            "还没有选中草稿：请先勾选一条或几条。", "No draft is chosen: tick one or several of them first."
        )
    return [
        replace(request, num_drafts=1, seed=request.seeds[draft], initial_tokens=_fitting(drawn, request.num_frames))
        for draft, drawn in chosen.items()
    ]


def keyframes(drawn: TokenFrames | None) -> TokenFrames | None:
    """The five keyframes among all frames of a clip."""
    if drawn is None or drawn.num_frames not in FRAME_COUNTS:
        return None
    return TokenFrames.of(drawn.rows()[:: (drawn.num_frames - 1) // (FRAME_COUNTS[0] - 1)])


def _fitting(drawn: TokenFrames | None, frames: int) -> TokenFrames | None:
    return drawn if drawn is not None and drawn.num_frames in FRAME_COUNTS and drawn.num_frames <= frames else None


def kept_tokens(jobs: JobService, job: str) -> TokenFrames:
    """What a job has drawn. Raises RequestError where it is gone or kept nothing."""
    jobs.state(job)
    tokens = jobs.tokens(job)
    if tokens is None:
        raise RequestError(
            "这段视频没有留下可以接着画的内容：请用同样的设置再生成一次。",
            "This video has kept nothing to go on from: make it again with the same settings.",
        )
    return tokens
