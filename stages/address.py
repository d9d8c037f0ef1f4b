"""Which IP addresses are of the public internet, and which a name of a host has."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Names", "is_public", "resolve"]

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_AZURE_METADATA = ipaddress.IPv4Address("168.63.129.16")  # the one metadata service in public space

_LOOKUP_SECONDS = 60.0
_MAX_LOOKUPS = 10_000


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet.

    Loopback, private, link-local, shared, multicast, reserved and unspecified addresses and those
    of cloud metadata services are not, nor are IPv6 addresses that carry such an IPv4 address
    (mapped, 6to4, Teredo, NAT64).
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast and ip != _AZURE_METADATA
    carried = _carried(ip)
    if carried:
        return all(is_public(str(inner)) for inner in carried)
    return ip.is_global and ip in _GLOBAL_UNICAST


def _carried(ip: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that packets to an IPv6 address may be passed on to."""
    if ip.ipv4_mapped is not None:
        return [ip.ipv4_mapped]
    if ip.sixtofour is not None:
        return [ip.sixtofour]
    if ip.teredo is not None:
        return list(ip.teredo)
    if ip in _NAT64:
        return [ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)]
    return []


def resolve(host: str) -> list[str]:
    """The addresses of a name, as the system finds them.

    Raises:
        OSError: It has none.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Names:
    """The addresses of names, looked up once a minute and in threads of their own.

    A look-up knows no timeout; whoever wants no more of it just leaves.

    Args:
        resolve: A host name to its addresses; raises OSError where it has none.
    """

    def __init__(self, resolve: Callable[[str], Sequence[str]] = resolve) -> None:
        self._resolve = resolve
        self._lock = threading.Lock()
        self._lookups: dict[str, tuple[float, Future[Sequence[str]]]] = {}
        self._pool = ThreadPoolExecutor(32, thread_name_prefix="resolve")

    def look_up(self, host: str) -> tuple[Future[Sequence[str]], bool]:
        """The addresses that a name will turn out to have, and whether it is only now asked."""
        now = time.monotonic()
        with self._lock:
            since, known = self._lookups.get(host, (0.0, None))
            if known is not None and now - since <= _LOOKUP_SECONDS:
                return known, False
            if len(self._lookups) >= _MAX_LOOKUPS:
                self._lookups.clear()
            future = self._pool.submit(self._resolve, host)
            self._lookups[host] = now, future
            return future, True

    def close(self) -> None:
        """Look up no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
