"""Check whether a server can be reached, with an answer within seconds even if there is no network."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

CONNECT_TIMEOUT = 3.0
"""Timeout of a TCP connection to one address of the server, in seconds."""


def is_reachable(url: str, proxies: Mapping[str, str]) -> bool:
    """Whether a server, or the proxy in front of it, accepts a TCP connection.

    Args:
        url: Any URL of the server.
        proxies: URLs of proxies by the scheme that they serve ("http", "https").
    """
    target = urlsplit(url)
    proxy = proxies.get(target.scheme)
    if proxy and not proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (target.hostname or "", target.port or (443 if target.scheme == "https" else 80))
    connected = threading.Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection(address, CONNECT_TIMEOUT):
            connected.set()

    # A thread, because a name lookup has no timeout; three timeouts, because a name may have several addresses.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(3 * CONNECT_TIMEOUT)
    return connected.is_set()
