"""Ports for the servers of tests: each is reserved until the process that asked for it ends."""

from __future__ import annotations

import socket
import sys

_HELD: list[socket.socket] = []


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens.

    On Linux a socket stays bound to it, so that the system gives it to no other program meanwhile. A server with
    SO_REUSEADDR, which all servers of tests set, may still listen there.
    """
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    port = int(held.getsockname()[1])
    if sys.platform == "linux":
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _HELD.append(held)
    else:
        held.close()
    return port
