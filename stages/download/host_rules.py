"""Block-lists and allow-lists of hosts, read from files of domains."""

from __future__ import annotations

import hashlib

import fsspec

from stages.download.urls import Target

__all__ = ["HostRules"]

_MAX_BYTES = 64 * 2**20


class HostRules:
    """A block-list and an allow-list of domains; a domain includes its subdomains.

    Args:
        deny: Path or fsspec URL of a file with one domain per line; these hosts get no requests.
        allow: The same for the only hosts that get requests; None allows all.

    Raises:
        ValueError: A file cannot be read, or a line is not a domain.
    """

    def __init__(self, deny: str | None = None, allow: str | None = None) -> None:
        self._deny = frozenset() if deny is None else _domains("deny_hosts", deny)
        self._allow = None if allow is None else _domains("allow_hosts", allow)

    @property
    def digest(self) -> str:
        """A digest of the rules that ignores the order and the spelling of domains."""
        lists = [sorted(self._deny), None if self._allow is None else sorted(self._allow)]
        return hashlib.sha256(repr(lists).encode()).hexdigest()[:16]

    def allows(self, host: str) -> bool:
        """Whether requests may be sent to a host."""
        names = {host}
        while (dot := host.find(".")) >= 0:
            host = host[dot + 1 :]
            names.add(host)
        return self._deny.isdisjoint(names) and not (
            self._allow is not None and self._allow.isdisjoint(names)
        )


def _domains(field: str, path: str) -> frozenset[str]:
    """Read the domains of a file, in ASCII, without empty lines and comments (`#`)."""
    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read(_MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, ImportError) as error:
        raise ValueError(
            f"download.{field}: {path} cannot be read ({error}); it must be a text file with one "
            "domain per line"
        ) from error
    if len(content) > _MAX_BYTES:
        raise ValueError(f"download.{field}: {path} is larger than {_MAX_BYTES} bytes")
    domains = set()
    for number, line in enumerate(text.splitlines(), 1):
        name = line.partition("#")[0].strip().removeprefix("*.").strip(".")
        if not name:
            continue
        try:
            domains.add(Target.of(f"http://{name}/").host)
            if any(sign in name for sign in "/:@?") and not name.startswith("["):
                raise ValueError("more than a domain")
        except ValueError as error:
            raise ValueError(
                f"download.{field}: line {number} of {path} is not a domain ({error}): "
                f"{line.strip()}"
            ) from error
    return frozenset(domains)
