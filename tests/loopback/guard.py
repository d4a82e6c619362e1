"""Only loopback: sockets and name look-ups to anywhere else fail as they do without a network."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex
_sendto = socket.socket.sendto
_getaddrinfo = socket.getaddrinfo


def _address(host: Any) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `host` is, or None for a name."""
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
    except ValueError:
        return None


def _check(family: int, address: Any) -> None:
    if family not in (socket.AF_INET, socket.AF_INET6) or address[0] in ("", "localhost"):
        return
    ip = _address(address[0])
    if ip is None or not ip.is_loopback:
        raise ConnectionRefusedError(f"the tests may not connect to {address[0]}")


def _guarded_connect(self: socket.socket, address: Any) -> None:
    _check(self.family, address)
    _connect(self, address)


def _guarded_connect_ex(self: socket.socket, address: Any) -> int:
    _check(self.family, address)
    return _connect_ex(self, address)


def _guarded_sendto(self: socket.socket, data: Any, *rest: Any) -> int:
    _check(self.family, rest[-1])
    return _sendto(self, data, *rest)


def _guarded_getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
    # Addresses need no look-up; connecting to them is checked.
    if host not in (None, "", b"", "localhost", b"localhost") and _address(host) is None:
        raise socket.gaierror(socket.EAI_NONAME, f"the tests may not look up {host}")
    return _getaddrinfo(host, *args, **options)


def install() -> None:
    """Guard this process. Children are guarded through `site/sitecustomize.py` on their `PYTHONPATH`."""
    socket.socket.connect = _guarded_connect  # type: ignore[method-assign,assignment]
    socket.socket.connect_ex = _guarded_connect_ex  # type: ignore[method-assign,assignment]
    socket.socket.sendto = _guarded_sendto  # type: ignore[method-assign,assignment]
    socket.getaddrinfo = _guarded_getaddrinfo
