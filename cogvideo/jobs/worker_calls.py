"""Small things that only the worker may do, since it alone uses the model: done between two tokens, awaited elsewhere.

An errand is a function without arguments; whoever asks gets its result or its exception.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from cogvideo.errors import CapacityError

Result = TypeVar("Result")


class Errands:
    """What waits for the worker. `wake` is called when something new does."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)

    def ask(self, work: Callable[[], Result], seconds: float) -> Result:
        """What `work` returns once the worker has done it. Raises what it raises, CapacityError after `seconds`."""
        future: Future[Result] = Future()
        self._waiting.append((future, work))
        self._wake()
        try:
            return future.result(seconds)
        except TimeoutError:
            if not future.cancel() and future.done():
                return future.result()  # it came at the last moment
            raise CapacityError(
                "服务器正忙，暂时无法处理这张图片：请过一会儿再试。",
                "The server is busy and cannot look at the picture now: try again in a while.",
            ) from None

    def run(self) -> None:
        """Does all that waits. Called by the worker."""
        while self._waiting:
            future, work = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # belongs to whoever asked
                future.set_exception(error)
