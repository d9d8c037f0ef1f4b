"""URLs as they may be shown or published: without what lets their reader in."""

from __future__ import annotations

import re

__all__ = ["redacted"]

HIDDEN = "***"

# user:password@ of an authority. Keys of object stores hold slashes too, which ports never precede.
_USER = re.compile(
    r"((?:^|:)//)(?:[^\s/?#@]{1,1000}@|[^\s/:@]{0,1000}:(?!\d+(?:[/?#\s]|$))[^\s@]{0,1000}@)"
)
_NAME = r"""
    (?: [\w.-]{0,200} [-_.] )?
    (?: signature | sig | token | secret | password | passwd | pwd | credentials? | auth | jwt
    | key | key[-_]?id | (?: access | api | auth | client | id | private | refresh | security
    | session )+ (?: token | key | secret | id ) )
  | (?: aws )? access key id | google access id | policy | shared access signature
"""
_VALUE = re.compile(rf"([?&;#](?:{_NAME})=)[^&;#\s\"'<>]+", re.IGNORECASE | re.VERBOSE)


def redacted(text: str) -> str:
    """A text with the secrets of its URLs hidden.

    These are users and passwords, and the values of parameters that sign or let in: `token`,
    `key`, `sig`, `X-Amz-Signature` and their like. All else stays as it is, so that what is public
    can still be fetched.

    Args:
        text: A URL, or a text with URLs in it.
    """
    if "//" in text and "@" in text:
        text = _USER.sub(rf"\1{HIDDEN}@", text)
    return _VALUE.sub(rf"\1{HIDDEN}", text) if "=" in text else text
