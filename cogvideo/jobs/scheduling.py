"""Capacity of the queue and the order in which jobs run. Pure functions."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush

from cogvideo.errors import CapacityError
from cogvideo.messages import message


def fair_order(waiting: Iterable[tuple[str, str]], served: Mapping[str, int], turn: int) -> list[str]:
    """Return job ids in the order in which they will run: owners take turns, each owner's jobs stay in order.

    Args:
        waiting: (job, owner) pairs, oldest first
        served: the last turn of each owner
        turn: the newest turn of all
    """
    jobs_of: dict[str, deque[tuple[int, str]]] = defaultdict(deque)  # owner -> (age in the queue, job)
    for age, (job, owner) in enumerate(waiting):
        jobs_of[owner].append((age, job))
    turns = [(served.get(owner, 0), *jobs[0], owner) for owner, jobs in jobs_of.items()]
    heapify(turns)
    ordered: list[str] = []
    while turns:
        _, _, job, owner = heappop(turns)  # the oldest job of the least recently served owner
        ordered.append(job)
        turn += 1
        jobs_of[owner].popleft()
        if jobs_of[owner]:
            heappush(turns, (turn, *jobs_of[owner][0], owner))
    return ordered


def check_capacity(count: int, owned: int, max_per_owner: int, waiting: int, max_waiting: int) -> None:
    """Check whether `count` more jobs fit. Raises CapacityError for the owner's limit or a full queue."""
    if count > 1 and owned + count > max_per_owner:
        raise CapacityError(*message("scheduling.too_many_drafts", max_per_owner=max_per_owner, owned=owned))
    if owned >= max_per_owner:
        raise CapacityError(*message("scheduling.user_limit_reached", owned=owned, max_per_owner=max_per_owner))
    if waiting + count > max_waiting:
        raise CapacityError(*message("scheduling.queue_full", waiting=waiting))
