"""`python -m cogvideo parity DIR`: do three checkpoints compute here what they computed in the release?

DIR holds the checkpoints in the published format and `golden.npz`, the release's outputs for them. Everything that
draws is computed through the cached decoder, one token at a time, with the golden tokens fed back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cogvideo.cli import console
from cogvideo.evaluation.parity import NOT_FOLLOWED, TOLERANCE, Parity, read_golden
from cogvideo.models.loader import load_published


def main(argv: Sequence[str]) -> int:
    """Prints one line for each array; 0 where all are within the tolerance, 1 where one is not. Raises WeightsError."""
    directory = _parser().parse_args(argv).directory
    golden = read_golden(directory / "golden.npz")
    parity = Parity(load_published(directory), golden)
    equal = True
    print(f"{'array':<24} {'largest difference':>18}")
    for name, difference in parity.differences():
        near = difference <= TOLERANCE  # not so for NaN
        equal &= near
        print(f"{name:<24} {difference:>18.2e}{'' if near else f'   over {TOLERANCE}'}", flush=True)
    for name, reason in NOT_FOLLOWED.items():
        if name in golden:
            print(f"{name:<24} {'not followed':>18}   {reason}")
    return console.DONE if equal else console.CHECK_FAILED


def _parser() -> console.Parser:
    parser = console.Parser("parity", description=__doc__)
    parser.add_argument("directory", metavar="DIR", type=Path, help="folder with three checkpoints and golden.npz")
    return parser
