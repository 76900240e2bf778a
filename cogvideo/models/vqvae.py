"""Networks of the small VQ-VAE. `mini`'s codec configuration inserts them into icetk's HVQVAE as `target`.

The encoder reads every 8 x 8 patch separately, so that a token depends on its own patch alone. A subject that moves by
whole cells keeps its tokens, which a transformer can learn from little data. The decoder is convolutional, so that
patches join without seams. (icetk's own encoder attends over the whole image: any motion would change every token.)
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEncoder(nn.Module):
    """Encoder of 4 x 4 patches: normalized pixels [B, 3, H, W] -> features [B, C, H/4, W/4]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, channels, kernel_size=4, stride=4)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.patch(pixels)
        return features


class PatchMerge(nn.Module):
    """Merge of 2 x 2 features into one, then an MLP: [B, C, 2h, 2w] -> [B, C_out, h, w]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.merge = nn.Conv2d(in_channels, out_channels, kernel_size=2, stride=2)
        self.hidden = nn.Conv2d(out_channels, 2 * out_channels, kernel_size=1)
        self.out = nn.Conv2d(2 * out_channels, out_channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        merged: Tensor = self.merge(features)  # [B, C_out, h, w]
        return merged + self.out(F.silu(self.hidden(F.silu(merged))))


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions and a skip connection, without normalization, which would couple distant positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class ShuffleDecoder(nn.Module):
    """Decoder: codes [B, z, h, w] -> normalized pixels [B, 3, 8h, 8w]. Each level doubles both sides by pixel shuffle.

    `context`: number of wide blocks that read the codes besides the first convolution. A code has 12 bits for 64
    pixels; the codes around it add information about its content.
    """

    def __init__(
        self,
        z_channels: int,
        channels: tuple[int, ...] = (128, 96, 48),
        blocks: tuple[int, ...] = (2, 1, 1),
        context: int = 0,
        context_channels: int = 192,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(z_channels, channels[0], 3, padding=1)
        self.context = _make_context(z_channels, context_channels, channels[0], context) if context else None
        widths = [*channels, 3]
        self.levels = nn.ModuleList()
        for width, following, count in zip(channels, widths[1:], blocks, strict=True):
            expand = nn.Conv2d(width, 4 * following, 3 if following == 3 else 1, padding=1 if following == 3 else 0)
            self.levels.append(
                nn.Sequential(*(ResBlock(width) for _ in range(count)), nn.SiLU(), expand, nn.PixelShuffle(2))
            )

    def forward(self, codes: Tensor) -> Tensor:
        x: Tensor = self.conv_in(codes)  # [B, C, h, w]
        if self.context is not None:
            x = x + self.context(codes)
        for level in self.levels:
            x = level(x)  # [B, C', 2h, 2w]
        return x

    def get_last_layer(self) -> Tensor:
        """Return the last convolution's weight, which HVQVAE exposes for adaptive losses."""
        convolutions = [m for m in self.modules() if isinstance(m, nn.Conv2d)]
        return convolutions[-1].weight


def _make_context(z_channels: int, width: int, channels: int, blocks: int) -> nn.Sequential:
    """Build the context branch: codes [B, z, h, w] -> features [B, channels, h, w].

    Its output is zero initially, so that it can be added to a trained decoder.
    """
    out = nn.Conv2d(width, channels, 1, bias=False)
    nn.init.zeros_(out.weight)
    return nn.Sequential(
        nn.Conv2d(z_channels, width, 3, padding=1), *(ResBlock(width) for _ in range(blocks)), nn.SiLU(), out
    )
