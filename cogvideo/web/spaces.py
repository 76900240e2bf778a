"""Hugging Face Spaces: links to the Space, and ZeroGPU."""

from __future__ import annotations

import logging
import os
from importlib import import_module

log = logging.getLogger(__name__)


def share_base() -> str:
    """Return the base of shared links: the Space's page. Returns "" outside a Space: the address in the browser."""
    space = os.environ.get("SPACE_ID")
    return f"https://huggingface.co/spaces/{space}" if space else ""


def duplicate_link() -> str:
    """Return the address that duplicates the Space. Returns "" outside a Space."""
    return f"{base}?duplicate=true" if (base := share_base()) else ""


def register_zero_gpu() -> None:
    """Register a GPU function on a ZeroGPU Space, which does not start without one.

    The function is not called: ZeroGPU lends a GPU for a minute to a separate process, and `mini` needs none.
    """
    if not os.environ.get("SPACES_ZERO_GPU"):
        return
    try:
        import_module("spaces").GPU(_on_gpu)  # preinstalled on ZeroGPU Spaces
    except ImportError:
        log.warning("This is a ZeroGPU Space without the package `spaces`; the platform may stop it")


def _on_gpu() -> None:
    """Do nothing; exists to be registered."""
