"""Markdown of the cards of data sets and models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

__all__ = ["code", "front_matter", "yaml_block"]


def front_matter(fields: Mapping[str, Any]) -> list[str]:
    """The lines of YAML at the top of a card, which Hugging Face reads."""
    return ["---", yaml.safe_dump(dict(fields), sort_keys=False).strip(), "---", ""]


def yaml_block(fields: Mapping[str, Any]) -> list[str]:
    """The lines of a code block that shows fields as YAML, in their order."""
    text = yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True).strip()
    return ["```yaml", text, "```", ""]


def code(value: Any) -> str:
    """Write a value as inline code without characters that would end a table cell."""
    return "`" + str(value).replace("|", "/").replace("`", "'").replace("\n", " ") + "`"
