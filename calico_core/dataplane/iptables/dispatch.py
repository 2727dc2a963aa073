"""From an interface to its chain in few steps: a tree of chains over the names.

A chain with few names asks for each; one with more leads to a chain for every next character, so that a packet among
a thousand interfaces is compared with some twenty rules, and a new interface rewrites one small chain. Pure.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: So many names are asked for one after the other.
_FEW = 8


def tree(root: str, option: str, targets: Mapping[str, str], miss: Sequence[str]) -> dict[str, list[str]]:
    """Rules by chain. ``option`` is ``-i`` or ``-o``; ``targets``: what is done for each interface, as ``-g CHAIN``;
    ``miss`` ends every chain: the rules for an interface that has no target."""
    chains: dict[str, list[str]] = {}
    _grow(chains, root, root, option, sorted(targets), targets, miss)
    return chains


def _grow(
    chains: dict[str, list[str]],
    root: str,
    node: str,
    option: str,
    names: list[str],
    targets: Mapping[str, str],
    miss: Sequence[str],
) -> None:
    rules = chains[node] = []
    if len(names) <= _FEW:
        rules += [_leaf(option, name, targets) for name in names]
        rules += miss
        return
    length = _common(names[0], names[-1])
    branches: list[str] = []
    for key, members in groupby(names, key=lambda name: name[: length + 1]):
        group = list(members)
        if len(group) == 1:
            # before the wildcards: a name may be the beginning of others
            rules.append(_leaf(option, group[0], targets))
            continue
        branches.append(f"{option} {key}+ -g {root}-{key}")
        _grow(chains, root, f"{root}-{key}", option, group, targets, miss)
    rules += [*branches, *miss]


def _leaf(option: str, name: str, targets: Mapping[str, str]) -> str:
    return f"{option} {name} {targets[name]}"


def _common(first: str, last: str) -> int:
    """How many characters all names of a sorted list share, given its ends."""
    for position, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return position
    return min(len(first), len(last))
