"""Who waits how long: what a server takes on, and in which order people are served. Pure; no torch."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush

from cogvideo.errors import CapacityError


def fair_order(waiting: Iterable[tuple[str, str]], served: Mapping[str, int], turn: int) -> list[str]:
    """Jobs in the order in which they will run: owners take turns, each owner's own jobs in order.

    `waiting`: (job, owner), oldest first. `served`: owner -> the turn they had last, `turn` being the newest of all.
    """
    theirs: dict[str, deque[tuple[int, str]]] = defaultdict(deque)  # owner -> their jobs, with age in the queue
    for age, (job, owner) in enumerate(waiting):
        theirs[owner].append((age, job))
    turns = [(served.get(owner, 0), *jobs[0], owner) for owner, jobs in theirs.items()]
    heapify(turns)
    ordered: list[str] = []
    while turns:
        _, _, job, owner = heappop(turns)  # the oldest job of the least recently served
        ordered.append(job)
        turn += 1
        theirs[owner].popleft()
        if theirs[owner]:
            heappush(turns, (turn, *theirs[owner][0], owner))
    return ordered


def check_capacity(count: int, mine: int, per_owner: int, waiting: int, most: int) -> None:
    """Raises CapacityError where `count` more jobs are too many for somebody who has `mine`, or for the queue."""
    if count > 1 and mine + count > per_owner:
        raise CapacityError(
            f"每人最多同时有 {per_owner} 段视频在生成或排队，您已有 {mine} 段：请少选几段。",
            f"Everybody may have {per_owner} videos running or waiting, and you have {mine}: choose fewer.",
        )
    if mine >= per_owner:
        raise CapacityError(
            f"您已有 {mine} 段视频在生成或排队，最多 {per_owner} 段：请等其中一段完成，或停止一段。",
            f"You have {mine} videos running or waiting, {per_owner} at most: wait for one to finish, or stop one.",
        )
    if waiting + count > most:
        raise CapacityError(
            f"排队的视频已有 {waiting} 段，队列满了：请过几分钟再试，您填写的内容会保留。",
            f"{waiting} videos are waiting and the queue is full: try again in a few minutes; what you typed stays.",
        )
