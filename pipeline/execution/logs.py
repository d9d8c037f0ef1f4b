"""Logs as JSON: a line for each event, with the run, the stage and the shard it is about."""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from stages.redaction import redacted

__all__ = ["VARIABLE", "configure", "is_json", "log_context", "log_event"]

VARIABLE = "CAPFILT_LOG"
"""The environment variable that turns JSON on; the driver passes it on to the workers."""

LAYERS = ("pipeline", "stages", "models")

_context: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("context", default={})  # noqa: B039

logger = logging.getLogger(__name__)


def is_json() -> bool:
    """Whether logs are written as JSON."""
    return os.environ.get(VARIABLE) == "json"


def configure() -> None:
    """Send the logs of this process to stderr as JSON, if that is turned on."""
    if not is_json():
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    for layer in LAYERS:
        own = logging.getLogger(layer)
        own.handlers, own.propagate = [handler], False
        own.setLevel(logging.INFO)


@contextlib.contextmanager
def log_context(**context: str) -> Iterator[None]:
    """Add run, stage or shard to every line that is logged in the block."""
    token = _context.set({**_context.get(), **context})
    try:
        yield
    finally:
        _context.reset(token)


def log_event(event: str, **fields: Any) -> None:
    """Log an event with some fields."""
    logger.info(event, extra={"fields": fields})


class Formatter(logging.Formatter):
    """Writes a record as one line of JSON: time (UTC), level, message, context, fields.

    Secrets are removed from URLs.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_context.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        shown = {k: redacted(v) if isinstance(v, str) else v for k, v in line.items()}
        return json.dumps(shown, ensure_ascii=False, default=str)
