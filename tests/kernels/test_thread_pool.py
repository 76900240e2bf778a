"""Threads that lend a hand change no number, are not waited for before they begin, and raise what goes wrong."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch

from cogvideo.config import TokenSampling
from cogvideo.inference import decoding
from cogvideo.inference.sampling import ClusterSampler, noise_keys
from kernels import cpu_decode
from kernels import thread_pool as teams
from kernels.thread_pool import ThreadPool
from tests.support.small_lm import CONFIG, random_frames, video_lm

REASON = cpu_decode.unsupported_reason(torch.zeros(1))
PATIENCE = 120
"""Seconds after which a test gives up: a busy machine is no failure."""
needs_compiler = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def test_each_piece_is_computed_once() -> None:
    for threads in (1, 2, 5):
        done: list[int] = []
        ThreadPool(threads).run([partial(done.append, number) for number in range(20)])
        assert sorted(done) == list(range(20))


def test_the_caller_does_what_nobody_else_has_begun() -> None:
    team, both, done = ThreadPool(2), threading.Barrier(3), threading.Event()
    held: list[bool] = []

    def hold() -> None:
        both.wait(PATIENCE)
        held.append(done.wait(PATIENCE))

    elsewhere = threading.Thread(target=team.run, args=[[hold, hold]])
    elsewhere.start()
    both.wait(PATIENCE)  # now the other thread is held up in another's work
    computed: list[int] = []
    team.run([partial(computed.append, 1), partial(computed.append, 2)])
    assert computed == [1, 2]
    assert not held
    done.set()
    elsewhere.join()


def helped(team: ThreadPool) -> bool:
    """Whether another thread takes part. Where one may, each of two pieces waits for the other to have begun."""
    names: list[str] = []
    both = threading.Barrier(1 if team._alone else 2)

    def piece() -> None:
        names.append(threading.current_thread().name)
        both.wait(PATIENCE)

    team.run([piece, piece])
    return len(set(names)) == 2


def test_after_a_long_wait_the_caller_is_alone_for_a_while_and_then_longer() -> None:
    moments: list[float] = []
    team = ThreadPool(2, clock=lambda: moments.pop(0))
    first, most = teams.ALONE
    for runs in (first, 2 * first, 4 * first):
        moments += [0.0, 1.0, 1.0 + 1.1 * teams.LONG]  # begun, done, others done
        assert helped(team)
        assert not any(helped(team) for _ in range(runs))
    moments += [0.0, 1.0, 1.5]
    assert helped(team)  # it was worth it
    moments += [0.0, 1.0, 9.0]
    assert helped(team)
    assert not any(helped(team) for _ in range(first))
    assert team._alone == 0
    for _ in range(20):
        team._update_backoff(1.0, 9.0)
    assert team._alone == most


def test_what_goes_wrong_in_a_piece_is_raised() -> None:
    for threads in (1, 3):
        with pytest.raises(ZeroDivisionError):
            ThreadPool(threads).run([partial(divmod, 1, 0)] * 4)


def test_work_too_small_to_wake_a_thread_for_stays_whole() -> None:
    assert ThreadPool(3).split(7, 10 * teams.WORTH) == [(0, 2), (2, 4), (4, 7)]
    assert ThreadPool(3).split(2, 10 * teams.WORTH) == [(0, 1), (1, 2)]
    assert ThreadPool(3).split(7, teams.WORTH) == [(0, 7)]
    assert ThreadPool(1).split(7, 10 * teams.WORTH) == [(0, 7)]


@needs_compiler
@pytest.mark.parametrize("stage", [1, 2])
def test_tokens_do_not_depend_on_the_number_of_threads(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams, "WORTH", 1)
    texts, clip = [[51, 52, 53], [54, 55, 56, 57, 58], [59]], random_frames(3, 5)
    drawn = []
    for threads in (1, 2, 3):
        lm, sampler = video_lm(stage), ClusterSampler(torch.arange(CONFIG.image_tokens) % 9, threads)
        lm.fuse(threads=threads)
        keys = noise_keys([7, 8, 9], 1, [0, 1, 2], CONFIG.tokens_per_frame)
        seen: list[torch.Tensor] = []

        def draw(
            logits: torch.Tensor,
            frame: int,
            slot: int,
            sampler: ClusterSampler = sampler,
            seen: list[torch.Tensor] = seen,
            keys: torch.Tensor = keys,
        ) -> torch.Tensor:
            seen.append(logits)
            return sampler.sample(logits, keys[slot], TokenSampling(1.0, 4, 0.9))

        known = clip[:, 0] if stage == 1 else clip[:, ::2]
        tokens = decoding.collect((decoding.keyframes if stage == 1 else decoding.interpolate)(lm, texts, known, draw))
        drawn.append((tokens, torch.stack(seen)))
    for tokens, scores in drawn[1:]:
        assert torch.equal(tokens, drawn[0][0])
        assert torch.equal(scores, drawn[0][1])
