"""Logs as JSON, a line an event, each with the run, the stage and the shard it is about."""

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
"""The environment variable that asks for JSON: on the driver, which hands it to the workers."""

LAYERS = ("pipeline", "stages", "models")

_subject: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("subject", default={})  # noqa: B039

logger = logging.getLogger(__name__)


def is_json() -> bool:
    """Whether logs are to be JSON."""
    return os.environ.get(VARIABLE) == "json"


def configure() -> None:
    """Send the logs of this process to stderr as JSON, where that is asked for."""
    if not is_json():
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    for layer in LAYERS:
        own = logging.getLogger(layer)
        own.handlers, own.propagate = [handler], False
        own.setLevel(logging.INFO)


@contextlib.contextmanager
def log_context(**subject: str) -> Iterator[None]:
    """Say of every line that is logged in the block what it is about: run, stage, shard."""
    token = _subject.set({**_subject.get(), **subject})
    try:
        yield
    finally:
        _subject.reset(token)


def log_event(event: str, **fields: Any) -> None:
    """Log an event with what is to be known of it."""
    logger.info(event, extra={"fields": fields})


class Formatter(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, message, subject, what `tell` was given.

    URLs lose their secrets.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_subject.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        shown = {k: redacted(v) if isinstance(v, str) else v for k, v in line.items()}
        return json.dumps(shown, ensure_ascii=False, default=str)
