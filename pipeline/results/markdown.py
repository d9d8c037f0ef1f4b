"""Pieces of the Markdown that cards are written in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

__all__ = ["code", "front_matter", "yaml_block"]


def front_matter(fields: Mapping[str, Any]) -> list[str]:
    """Lines of the YAML that Hugging Face reads at the top of a card."""
    return ["---", yaml.safe_dump(dict(fields), sort_keys=False).strip(), "---", ""]


def yaml_block(fields: Mapping[str, Any]) -> list[str]:
    """Lines that show fields as YAML, in their order."""
    text = yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True).strip()
    return ["```yaml", text, "```", ""]


def code(value: Any) -> str:
    """A value as code that cannot end the cell of a table."""
    return "`" + str(value).replace("|", "/").replace("`", "'").replace("\n", " ") + "`"
