"""Hides passwords, keys and signatures in URLs that are shown or published."""

from __future__ import annotations

import re

__all__ = ["redacted"]

HIDDEN = "***"

# user:password@ before a host. Passwords may contain slashes, as keys of object stores do; a colon
# followed by digits is a port.
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
    """Replace the secrets in URLs by `***`.

    Secrets are user names and passwords, and the values of parameters that grant access, such as
    `token`, `key`, `sig` and `X-Amz-Signature`. The rest is unchanged, so that a public URL can
    still be fetched.

    Args:
        text: A URL, or a text that contains URLs.
    """
    if "//" in text and "@" in text:
        text = _USER.sub(rf"\1{HIDDEN}@", text)
    return _VALUE.sub(rf"\1{HIDDEN}", text) if "=" in text else text
