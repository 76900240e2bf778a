"""What sat does to a process stays in the bridge. Importing is part of that: hence fresh processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from cogvideo.config import PRESETS
from cogvideo.models.video_lm import VideoLM
from tests.support.small_lm import CONFIG

ROOT = Path(__file__).resolve().parents[2]

STATE = """
import logging, os, random, signal, sys, threading
import numpy, torch

def state():
    return {
        "argv": list(sys.argv),
        "torch seed": torch.get_rng_state().tolist(),
        "numpy seed": numpy.random.get_state()[1].tolist(),
        "python seed": random.getstate(),
        "distributed": torch.distributed.is_initialized(),
        "threads": threading.active_count(),
        "torch threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "logging": (logging.root.manager.disable, list(logging.root.handlers), logging.root.level),
        "interrupt": signal.getsignal(signal.SIGINT),
        "folder": os.getcwd(),
    }

before = state()
"""

AFTER = """
after = state()
changed = [name for name in before if before[name] != after[name]]
assert not changed, changed
"""

BUILD = """
from dataclasses import replace
from cogvideo.config import PRESETS
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
config = replace(PRESETS["mini"].model, layers=1, hidden=16, heads=2)
"""


def run(*parts: str) -> str:
    command = [sys.executable, "-c", "".join(parts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_importing_and_building_leave_the_process_as_it_was() -> None:
    said = run(STATE, BUILD, 'lm = VideoLM(config, 1)\nSuperResLM(config, lm.transformer, "meta")\n', AFTER)
    assert said == ""


def test_a_model_runs_and_trains_without_a_process_group() -> None:
    run(
        BUILD,
        "import torch\n"
        "lm = VideoLM(config, 1)\n"
        "lm.forward_images(torch.ones(1, 2).long(), torch.tensor([2]), torch.ones(1, 64).long()).sum().backward()\n"
        "assert not torch.distributed.is_initialized()\n"
        "store = torch.distributed.HashStore()\n"
        'torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)\n'
        "VideoLM(config, 2)  # somebody else's group is left alone\n"
        "assert torch.distributed.is_initialized()\n"
        "torch.distributed.destroy_process_group()\n",
    )


def test_without_storage_nothing_is_allocated_or_drawn() -> None:
    lm = VideoLM(PRESETS["cogvideo"].model, 1, device="meta")  # 8 billion weights
    assert all(weight.is_meta for weight in lm.parameters())


def test_equal_seeds_give_equal_weights() -> None:
    words = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        words.append(VideoLM(CONFIG, 1).state_dict()["transformer.word_embeddings.weight"])
    assert torch.equal(words[0], words[1])
    assert not torch.equal(words[0], words[2])
