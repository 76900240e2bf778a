"""`python -m cogvideo parity DIR`: compare the outputs of three checkpoints here with those of the 2022 release.

DIR contains the checkpoints in the published format and `golden.npz`, the release's outputs for them. Keyframes and
interpolation run through the KV cache, one token at a time, with the golden tokens as input.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cogvideo.cli import console
from cogvideo.evaluation.parity import NOT_FOLLOWED, TOLERANCE, Parity, read_golden
from cogvideo.models.loader import load_published


def main(argv: Sequence[str]) -> int:
    """Print a line for each array. Returns 0 if all are within the tolerance, otherwise 1. Raises WeightsError."""
    directory = parser().parse_args(argv).directory
    golden = read_golden(directory / "golden.npz")
    parity = Parity(load_published(directory), golden)
    equal = True
    print(f"{'array':<24} {'largest difference':>18}")
    for name, difference in parity.differences():
        within = difference <= TOLERANCE  # False for NaN
        equal &= within
        print(f"{name:<24} {difference:>18.2e}{'' if within else f'   over {TOLERANCE}'}", flush=True)
    for name, reason in NOT_FOLLOWED.items():
        if name in golden:
            print(f"{name:<24} {'not followed':>18}   {reason}")
    return console.DONE if equal else console.CHECK_FAILED


def parser() -> console.Parser:
    """Return the parser of this command."""
    root = console.Parser("parity", description=__doc__)
    root.add_argument("directory", metavar="DIR", type=Path, help="folder with three checkpoints and golden.npz")
    return root
