"""Parses URLs as browsers do (the URL standard of the WHATWG)."""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote, unquote_to_bytes, urljoin

import idna

__all__ = ["Origin", "SchemeError", "Target", "join"]

Origin: TypeAlias = tuple[str, str, int]
"""Scheme, host and port; URLs of one origin share a robots.txt and a connection."""

_MAX_URL = 8192  # characters
_PORTS = {"http": 80, "https": 443}

# Spaces and control characters, and invisible characters that word processors put around a link.
_AROUND = "".join(map(chr, range(0x21))) + "\x7f\xa0\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_WEB = re.compile(r"(https?):[/\\]{0,2}([^/\\?#]*)([^?#]*)(\?[^#]*)?", re.IGNORECASE | re.DOTALL)
_PORT = re.compile(r"(.*?)(?::([0-9]*))?", re.DOTALL)
_HOST = re.compile(r"[a-z0-9._-]{1,253}")
# Characters that are not percent-encoded. "%" is one, so that nothing is encoded twice.
_SAFE = "/%:=&?~+!$,;'@()*[]|"


class SchemeError(ValueError):
    """A URL without a scheme."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A parsed URL.

    Attributes:
        scheme: http or https.
        host: A name in ASCII, an IPv4 address in four decimal parts, or an IPv6 address without
            brackets.
        port: The port number.
        path: The path and query, percent-encoded, without `.` and `..` segments.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> Target:
        r"""Parse a URL.

        As in browsers, surrounding blanks and the user name are dropped, `http:/host` and
        `http:\\host` mean `http://host`, and a host that is not ASCII is encoded by UTS 46 without
        the transitional mappings of IDNA 2003.

        Raises:
            SchemeError: The URL has no scheme.
            ValueError: The URL is too long, has another scheme, or has no valid host.
        """
        if len(url) > _MAX_URL:
            raise ValueError(f"longer than {_MAX_URL} characters")
        text = url.strip(_AROUND)
        if not text:
            raise ValueError("empty")
        match = _WEB.match(text)
        if match is None:
            if _SCHEME.match(text) and not _is_host_and_port(text):
                raise ValueError("a scheme other than http and https")
            raise SchemeError("no scheme: write http:// or https:// before it")
        scheme = match[1].lower()
        host, port = _authority(match[2])
        path = quote(_without_dots(match[3].replace("\\", "/")), safe=_SAFE)
        query = quote(match[4] or "", safe=_SAFE)
        return cls(scheme=scheme, host=host, port=port or _PORTS[scheme], path=path + query)

    @property
    def origin(self) -> Origin:
        """Scheme, host and port."""
        return self.scheme, self.host, self.port

    @property
    def is_address(self) -> bool:
        """Whether the host is an IP address."""
        return ":" in self.host or self.host.rpartition(".")[2].isdigit()

    @property
    def root(self) -> str:
        """The URL of the origin, without a trailing slash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"

    @functools.cached_property
    def url(self) -> str:
        """The URL in ASCII."""
        return self.root + self.path


def join(url: str, location: str) -> str:
    """Return the absolute URL of a redirect to a location, which may be relative.

    Raises:
        ValueError: The location is not a URL.
    """
    return urljoin(url, location.strip(_AROUND).replace("\\", "/"))


def _authority(text: str) -> tuple[str, int | None]:
    """Parse the host and the port, if any, between the scheme and the path."""
    text = text.rpartition("@")[2]
    port: str | None
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("a bracket is missing around an IPv6 address")
        if "%" in address:
            raise ValueError("an IPv6 address with a zone")
        host, port = str(ipaddress.IPv6Address(address)), rest[1:]
    else:
        match = _PORT.fullmatch(text)
        assert match is not None  # both groups may be empty
        host, port = _host(match[1]), match[2]
    number = int(port) if port and len(port) <= 5 else None
    if port and (number is None or not 0 < number < 65_536):
        raise ValueError("the port is not a number from 1 to 65535")
    return host, number


def _host(text: str) -> str:
    """Return a host name in ASCII, or an IPv4 address in four decimal parts."""
    name = unquote_to_bytes(text).decode() if "%" in text else text
    if not name.isascii():
        name = _ascii(name)
    name = name.lower().removesuffix(".")
    if not _HOST.fullmatch(name):
        raise ValueError("no valid host")
    if any(len(label) > 63 for label in name.split(".")):
        raise ValueError("a label of the host is longer than 63 characters")
    last = name.rpartition(".")[2]
    if last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last):
        try:
            return socket.inet_ntoa(socket.inet_aton(name))
        except OSError as error:
            raise ValueError("not a valid IPv4 address") from error
    return name


def _ascii(name: str) -> str:
    """Encode a name by UTS 46, non-transitional, including symbols that IDNA 2008 excludes."""
    labels = idna.uts46_remap(name, std3_rules=False, transitional=False).split(".")
    return ".".join(label if label.isascii() else _label(label) for label in labels)


def _label(label: str) -> str:
    try:
        return idna.alabel(label).decode("ascii")
    except (idna.IDNABidiError, idna.InvalidCodepointContext):
        raise
    except idna.InvalidCodepoint:
        return "xn--" + label.encode("punycode").decode("ascii")


def _without_dots(path: str) -> str:
    """Resolve the `.` and `..` segments of a path, including percent-encoded ones."""
    plain = re.sub(r"(?<=/)((?:\.|%2e){1,2})(?=/|$)", _plain_dots, path or "/", flags=re.I)
    if "/." not in plain:
        return plain
    kept: list[str] = []
    segments = plain.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _plain_dots(match: re.Match[str]) -> str:
    return re.sub("%2e", ".", match[0], flags=re.I)


def _is_host_and_port(text: str) -> bool:
    """Whether the text before the colon is a host, as in `example.org:8080/cat.jpg`."""
    return re.match(r"[^/\\?#:]*:[0-9]+(?:[/\\?#]|$)", text) is not None
