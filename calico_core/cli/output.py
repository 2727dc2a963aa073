"""Answers on stdout: tables for people, JSON and YAML for programs. Notes go to stderr."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import click

from calico_core.errors import InvalidRequest


class Asked(Protocol):
    """Who knows in what form the answer was asked for: ``table``, ``json`` or ``yaml``."""

    output: str


def answer(context: Asked, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Print ``rows``: JSON-ready mappings. ``columns`` maps heading to field, for the table only."""
    if context.output == "json":
        click.echo(json.dumps(list(rows), indent=2))
    elif context.output == "yaml":
        click.echo(_yaml(list(rows)), nl=False)
    else:
        click.echo(table(list(columns), [[_cell(row.get(field)) for field in columns.values()] for row in rows]))


def answer_one(context: Asked, value: Mapping[str, Any], text: str) -> None:
    """One object, or the sentence that says it."""
    if context.output == "json":
        click.echo(json.dumps(value, indent=2))
    elif context.output == "yaml":
        click.echo(_yaml(value), nl=False)
    else:
        say(text)


def say(text: str) -> None:
    """Lines for people. What anybody may have written in the datastore is in them."""
    click.echo(_printable(text, "\n"))


def note(text: str) -> None:
    click.echo(_printable(text, "\n"), err=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A grid; a cell may hold several lines."""
    cells = [[cell.split("\n") for cell in row] for row in [headings, *rows]]
    widths = [max(len(line) for row in cells for line in row[column]) for column in range(len(headings))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [rule]
    for number, row in enumerate(cells):
        for line in range(max(len(cell) for cell in row)):
            parts = (
                f" {cell[line] if line < len(cell) else '':{width}} " for cell, width in zip(row, widths, strict=True)
            )
            lines.append("|" + "|".join(parts) + "|")
        if number == 0:
            lines.append(rule)
    lines.append(rule)
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return "\n".join(_cell(item) for item in value)
    if isinstance(value, dict):
        return "\n".join(f"{_printable(str(name))}={_cell(item)}" for name, item in value.items())
    return _printable(str(value))


def _printable(text: str, kept: str = "") -> str:
    """Without what a terminal takes for a command, and what would look like a line of ours."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode() for each in text
    )


def _yaml(value: Any) -> str:
    try:
        import yaml
    except ImportError:
        raise InvalidRequest("--output", "yaml needs the package PyYAML; json works without") from None
    text: str = yaml.safe_dump(value, sort_keys=False)
    return text
