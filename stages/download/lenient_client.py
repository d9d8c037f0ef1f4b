"""An HTTP/1.0 client that, like browsers, ignores malformed header lines libcurl refuses."""

from __future__ import annotations

import re
import time
from urllib.parse import urlsplit

import pycurl

__all__ = ["Exchange"]

_MAX_HEAD = 2**16  # bytes
_MAX_LINES = 5000
_STATUS = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: |$)")
_END = re.compile(rb"\r?\n\r?\n")


class Exchange:
    """One request over its own connection, which libcurl has opened and secured.

    The request uses HTTP/1.0, so the response ends with the connection at the latest.

    Args:
        handle: A handle whose `CONNECT_ONLY` transfer has ended.
        url: The URL to request.
        headers: The request's header lines, without Host.
        max_bytes: Maximum size of the body.
        deadline: Time of `time.monotonic` at which the request times out.

    Attributes:
        status: Status of the response; 0 until its headers have been read.
        lines: Header lines of the response, without malformed ones.
        body: The body received so far, at most `max_bytes` + 1 bytes.
        code: libcurl's code for how the request ended; None while it is running.
    """

    def __init__(
        self, handle: pycurl.Curl, url: str, headers: list[str], max_bytes: int, deadline: float
    ) -> None:
        self.status = 0
        self.lines: list[bytes] = []
        self.body = b""
        self.code: int | None = None
        self._handle = handle
        self._max_bytes = max_bytes
        self._deadline = deadline
        self._head = b""
        self._length: int | None = None
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = [f"GET {path} HTTP/1.0", f"Host: {parts.netloc}", *headers, "Connection: close"]
        self._unsent = "\r\n".join([*lines, "", ""]).encode("ascii")

    def advance(self) -> None:
        """Send and receive as much as is possible without blocking."""
        try:
            while self._unsent and self.code is None:
                self._unsent = self._unsent[self._handle.send(self._unsent) :]
            while self.code is None:
                part = self._handle.recv(65_536)
                self._take(part) if part else self._finish()
        except BlockingIOError:
            if time.monotonic() > self._deadline:
                self.code = pycurl.E_OPERATION_TIMEDOUT
        except pycurl.error as error:
            self.code = int(error.args[0])

    def _take(self, part: bytes) -> None:
        if self.status:
            self.body += part
        else:
            self._head += part
            end = _END.search(self._head)
            if end is None:
                if len(self._head) > _MAX_HEAD:
                    self.code = pycurl.E_UNSUPPORTED_PROTOCOL
                return
            self._read_head(self._head[: end.start()])
            self.body = self._head[end.end() :]
        if len(self.body) > self._max_bytes:
            self.body = self.body[: self._max_bytes + 1]
            self.code = pycurl.E_FILESIZE_EXCEEDED
        elif self._length is not None and len(self.body) >= self._length:
            self.body = self.body[: self._length]
            self.code = pycurl.E_OK

    def _read_head(self, head: bytes) -> None:
        first, *lines = re.split(rb"\r?\n", head)
        status = _STATUS.match(first)
        self.lines = [line for line in lines[:_MAX_LINES] if b":" in line and b"\0" not in line]
        names = {line.partition(b":")[0].strip().lower(): line for line in self.lines}
        length = names.get(b"content-length", b":").partition(b":")[2].strip()
        is_unsupported = b"transfer-encoding" in names or len(lines) > _MAX_LINES
        if (
            status is None
            or int(status[1]) < 200
            or is_unsupported
            or (length and not length.isdigit())
        ):
            self.code = pycurl.E_UNSUPPORTED_PROTOCOL
            return
        self.status = int(status[1])
        self._length = int(length) if length else None

    def _finish(self) -> None:
        """Set the code after the server has closed the connection."""
        if not self.status:
            self.code = pycurl.E_GOT_NOTHING
        else:
            self.code = pycurl.E_OK if self._length is None else pycurl.E_PARTIAL_FILE
