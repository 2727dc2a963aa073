"""The base of everything stored or handed across a seam."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A frozen value. Unknown fields are ignored on read; fields at their default are not written."""


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """A frozen value that is never stored."""
