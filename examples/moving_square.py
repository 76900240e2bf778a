"""Example of a dataset class: squares that move over a plain ground, rendered on first use.

A recipe names it: data = "examples/moving_square.py:MovingSquares". A class that reads files has the same two methods.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cogvideo import ImageTokenizer, Preset, TokenClip, to_tokens

COLOURS = {"红色": (220, 50, 47), "绿色": (60, 160, 60), "蓝色": (38, 100, 210)}
DIRECTIONS = {"向左": (0, -1), "向右": (0, 1), "向上": (-1, 0), "向下": (1, 0)}
FRAMES = 9


class MovingSquares:
    """Squares of every colour in every direction. Training calls the class with its preset and its image tokenizer."""

    def __init__(self, preset: Preset, codec: ImageTokenizer) -> None:
        self.preset, self.codec = preset, codec
        self.cases = [(colour, direction) for colour in COLOURS for direction in DIRECTIONS]
        self.clips: dict[int, TokenClip] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> TokenClip:
        if index not in self.clips:  # encoding is slow, so clips are kept
            colour, direction = self.cases[index]
            pixels = np.stack([self.draw(colour, direction, i / (FRAMES - 1)) for i in range(FRAMES)])
            frames, fine = to_tokens(self.codec, self.preset, pixels)
            self.clips[index] = TokenClip(f"一个{colour}方块{direction}移动", 4.0, frames, fine)
        return self.clips[index]

    def draw(self, colour: str, direction: str, moment: float) -> npt.NDArray[np.uint8]:
        """Render the frame at `moment`, 0 to 1: uint8 [H, W, 3] of the preset's final size."""
        height, width = self.preset.final_size
        side = height // 4
        down, right = DIRECTIONS[direction]
        y = round((height - side) * (0.5 + down * (moment - 0.5)))
        x = round((width - side) * (0.5 + right * (moment - 0.5)))
        frame = np.full((height, width, 3), 235, np.uint8)
        frame[y : y + side, x : x + side] = COLOURS[colour]
        return frame
