"""Where and how the page is served: options of the command line, the port, the data folder, the address of links."""

from __future__ import annotations

import logging
import os
from importlib import import_module

log = logging.getLogger(__name__)


def share_base() -> str:
    """Where links should lead: the Space's own page, or, where this is empty, the address the browser sees."""
    space = os.environ.get("SPACE_ID")
    return f"https://huggingface.co/spaces/{space}" if space else ""


def duplicate_link() -> str:
    """Where a visitor of the Space gets one of their own; empty where this is no Space."""
    return f"{base}?duplicate=true" if (base := share_base()) else ""


def register_zero_gpu() -> None:
    """Where cards are only lent (a ZeroGPU Space): names a function that takes one, without which the hub starts none.

    Nobody calls it: a lent card stays for a minute, in a process of its own, and `mini` needs none.
    """
    if not os.environ.get("SPACES_ZERO_GPU"):
        return
    try:
        import_module("spaces").GPU(_with_a_card)  # the hub's own package, which it installs itself
    except ImportError:
        log.warning("This is a ZeroGPU Space without the package `spaces`: the hub may stop it.")


def _with_a_card() -> None:
    """What the hub wants to be named."""
