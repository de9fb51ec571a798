"""Configs with a reason for each value, as YAML with comments."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True)
class Choice:
    """A value of a config, and why it was chosen.

    Attributes:
        value: Plain YAML types.
        why: A few words, which become the comment; empty writes none.
    """

    value: Any
    why: str = ""


Draft = Mapping[str, Any]
"""Key -> a `Choice`, a `Draft`, or a list of them."""


def plain(node: Any) -> Any:
    """Return a draft's values alone, as the config's parser takes them."""
    if isinstance(node, Choice):
        return node.value
    if isinstance(node, Mapping):
        return {key: plain(value) for key, value in node.items()}
    return [plain(item) for item in node]


def to_yaml(draft: Draft, header: Sequence[str]) -> str:
    """Write a draft as YAML, each value with its reason as a comment.

    Args:
        draft: The config.
        header: Lines of the comment above it.
    """
    comments = [" ".join(line.split()) for line in header]  # a path may hold a line break
    lines = [*(f"# {line}" for line in comments), *_lines(draft)]
    return "\n".join(lines) + "\n"


def _lines(draft: Draft) -> Iterator[str]:
    for key, node in draft.items():
        if isinstance(node, Choice):
            yield f"{key}: {_scalar(node.value)}{f'  # {node.why}' if node.why else ''}"
        elif isinstance(node, Mapping):
            yield f"{key}:"
            yield from (f"  {line}" for line in _lines(node))
        else:
            yield f"{key}:"
            for item in node:
                marks = iter(("- ",))
                yield from (f"  {next(marks, '  ')}{line}" for line in _lines(item))


def _scalar(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
