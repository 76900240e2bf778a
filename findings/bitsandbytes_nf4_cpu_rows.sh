#!/usr/bin/env bash
# bitsandbytes 0.50.2, torch 2.13.0 (CPU), Python 3.11, Linux x86-64 with AVX-512. Seen on 1 December 2026.
#
# On a CPU `dequantize_4bit` returns wrong weights, without an error or a warning, for rows of 32, 96, 160, 224 ...
# numbers: multiples of 16 that are no multiple of the block of 64. `quantize_4bit` cuts blocks from the flat matrix, so
# number k of row r has scale (r * length + k) // 64. The kernel takes scale r * (length // 64) + k // 64 instead.
# The same codes and scales are unpacked correctly if their state describes them as rows of one block.
#
# Output: relative error of 64 rows of normal numbers, unpacked by the library, by hand, and as rows of one block:
#     32     40.2%      9.2%      9.2%
#     64      9.2%      9.2%      9.2%
#     96     27.2%      9.3%      9.3%
#    160     23.5%      9.1%      9.1%
#    ...
# wrong: [32, 96, 160, 224, 288, 352, 416, 480]
#
# Status 0: the behaviour is as described. 1: it has changed. 2: it cannot be shown here (no AVX-512, or no install).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet torch==2.13.0 bitsandbytes==0.50.2 || exit 2

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

print(f"bitsandbytes {version('bitsandbytes')}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
if torch.backends.cpu.get_cpu_capability() != "AVX512":
    print("This CPU has no AVX-512: the kernel at fault is not used here.")
    sys.exit(2)


def by_hand(codes: torch.Tensor, code: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Two codes a byte, the high half first; 64 numbers share a scale."""
    pairs = torch.stack((codes.flatten() >> 4, codes.flatten() & 15), 1).flatten()
    return code[pairs.long()] * scales.repeat_interleave(64)


def off(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got.flatten() - exact.flatten()).norm() / exact.norm())


torch.manual_seed(0)
wrong = []
print("length   library   by hand   rows of one block")
for length in range(32, 513, 32):
    exact = torch.randn(64, length)
    codes, state = quantize_4bit(exact, quant_type="nf4", blocksize=64, compress_statistics=False)
    library, hand = dequantize_4bit(codes, state), by_hand(codes, state.code, state.absmax)
    state.shape = torch.Size((exact.numel() // 64, 64))
    blocks = dequantize_4bit(codes, state)
    print(f"{length:>6}{off(library, exact):>10.1%}{off(hand, exact):>10.1%}{off(blocks, exact):>10.1%}")
    if off(blocks, hand) > 1e-6:
        sys.exit("Changed: rows of one block are no longer unpacked correctly.")
    if off(library, hand) > 0.01:
        wrong.append(length)
print(f"wrong: {wrong}")
expected = [length for length in range(32, 513, 32) if length % 64]
sys.exit(0 if wrong == expected else f"Changed: expected {expected}")
PYTHON
