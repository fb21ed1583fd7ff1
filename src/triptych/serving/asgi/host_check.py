"""Host and Origin checks, so that pages of other origins cannot reach the server by a browser."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping

from triptych.serving.asgi.api_errors import APIError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]/@?#\s]+))(?::[0-9]{1,5})?", re.ASCII)


class AllowedHosts:
    """Names by which a server may be addressed.

    Args:
        bound: address or name that the server listens on. With 0.0.0.0 or ::, every IP address and
            the name of this machine are allowed too, since the owner of another domain cannot
            point those to this machine.
        allowed: further names; "*" allows every host and origin.
    """

    def __init__(self, bound: str = "127.0.0.1", allowed: Iterable[str] = ()) -> None:
        self.allowed = {name.lower().strip("[]").rstrip(".") for name in allowed}
        self.allow_all = "*" in self.allowed
        self.all_addresses = bound in ("", "0.0.0.0", "::")
        self.names = {*LOOPBACK, *self.allowed, bound.lower()}
        if self.all_addresses:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse requests for other hosts, and from pages of other origins.

        A request without Host (HTTP/1.0) is allowed, since no browser sends one.

        Raises:
            APIError: 421 or 403.
        """
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if b"host" in headers and not self._allows_host(host):
            raise APIError(
                421,
                "this server has another name; start it with --allow-host NAME to allow this one.",
                "host_not_allowed",
            )
        if b"origin" in headers and not self._allows_origin(origin, host):
            raise APIError(
                403,
                "pages of other origins may not use this server; start it with --allow-host NAME "
                "to allow the host of a page.",
                "origin_not_allowed",
            )

    def _allows_host(self, header: str) -> bool:
        name = _name(header)
        return self.allow_all or name in self.names or (self.all_addresses and _is_address(name))

    def _allows_origin(self, header: str, host: str) -> bool:
        """Whether the origin is the server itself, or its host is allowed explicitly."""
        origin = header.lower().partition("://")[2]
        return self.allow_all or origin == host.lower() or _name(origin) in self.allowed


def _name(host: str) -> str:
    """Parse the name of "name:port" in lower case; return "" if it is malformed."""
    match = HOST.fullmatch(host.lower())
    return (match[1] or match[2]).rstrip(".") if match else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
