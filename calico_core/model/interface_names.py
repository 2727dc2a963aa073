"""Lists of interfaces as the reference agent writes them: ``kube-ipvs0,/^veth/``, names and regular expressions; and
what the names of workloads' interfaces begin with, one prefix or several."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from calico_core.errors import InvalidRequest

_NAME = re.compile(r"[^\s/:]{1,15}")


def parse_interface_names(text: str, *, field: str = "value") -> Callable[[str], bool]:
    """Whether a name is in the list. An expression stands between slashes and is searched for, so anchor it.

    :raises InvalidRequest: a part is neither a name that an interface can have nor an expression.
    """
    names: set[str] = set()
    patterns: list[re.Pattern[str]] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        if len(part) > 1 and part.startswith("/") and part.endswith("/"):
            try:
                patterns.append(re.compile(part[1:-1]))
            except re.error as error:
                raise InvalidRequest(field, f"{part!r} is not a regular expression: {error}") from None
        else:
            if not _NAME.fullmatch(part):
                raise InvalidRequest(field, f"{part!r} is neither the name of an interface nor a /regular expression/")
            names.add(part)
    return lambda name: name in names or any(pattern.search(name) for pattern in patterns)


def separate_prefixes(prefixes: Collection[str]) -> tuple[str, ...]:
    """Those that none of the others covers, sorted: a name begins with one of them at most."""
    found: list[str] = []
    for prefix in sorted(prefixes):
        if not found or not prefix.startswith(found[-1]):
            found.append(prefix)
    return tuple(found)


def prefixes_in_words(prefixes: Collection[str]) -> str:
    return " or ".join(map(repr, prefixes))
