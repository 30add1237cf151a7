"""Is a server there? Found within seconds, so that nobody waits for a network that does not exist."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

CONNECT_TIMEOUT = 3.0
"""Seconds for a TCP connection to one address of the server."""


def is_reachable(url: str, proxies: Mapping[str, str]) -> bool:
    """Whether the server, or the proxy on the way to it, accepts a TCP connection."""
    target = urlsplit(url)
    proxy = proxies.get(target.scheme)
    if proxy and not proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (target.hostname or "", target.port or (443 if target.scheme == "https" else 80))
    connected = threading.Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection(address, CONNECT_TIMEOUT):
            connected.set()

    # A thread, because looking up a name knows no timeout; three times, because a name may have several addresses.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(3 * CONNECT_TIMEOUT)
    return connected.is_set()
