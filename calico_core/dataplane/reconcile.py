"""Desired against observed: what must change in a policy table, as a plan.

A table is chains and sets by name; this knows nothing of a kernel or a tool, a driver gives the names and texts their
meaning. The law: applying a plan to what was observed gives what is desired, and a second plan is empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from pyroaring import AbstractBitMap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

    #: A set of hashable values: frozenset, or a bitmap of integers.
    Elements = AbstractSet[Any] | AbstractBitMap


class Chain(msgspec.Struct, frozen=True):
    """``tags`` identify the rules, one each; ``rules`` are their texts, empty when read from the kernel.
    ``hook``: what makes it a base chain, in the driver's words; empty for an ordinary one."""

    tags: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    hook: str = ""


class NamedSet(msgspec.Struct, frozen=True):
    """A set or a map. ``kind`` names the type of its elements in the driver's words."""

    kind: str
    elements: Any = frozenset()


class Table:
    """Chains and sets by name."""

    __slots__ = ("chains", "sets")

    def __init__(self, chains: Mapping[str, Chain] | None = None, sets: Mapping[str, NamedSet] | None = None) -> None:
        self.chains: dict[str, Chain] = dict(chains or {})
        self.sets: dict[str, NamedSet] = dict(sets or {})

    def names(self) -> set[str]:
        return {*self.chains, *self.sets}

    def follow(self, desired: Table, names: Iterable[str]) -> None:
        """Take over these names from ``desired``, as applying a plan for them does."""
        for name in names:
            _take(self.chains, desired.chains, name)
            _take(self.sets, desired.sets, name)

    def differences(self, other: Table) -> list[str]:
        """Names that are not the same in both; for people and tests."""
        return sorted(name for name in self.names() | other.names() if not self._is_same(other, name))

    def _is_same(self, other: Table, name: str) -> bool:
        one, two = self.chains.get(name), other.chains.get(name)
        if (one and (one.tags, one.hook)) != (two and (two.tags, two.hook)):
            return False
        first, second = self.sets.get(name), other.sets.get(name)
        if first is None or second is None:
            return first is second
        return bool(first.kind == second.kind and first.elements == second.elements)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, in the order of the fields. ``is_rebuild``: the table is made anew first.

    All of it belongs in one transaction: elements go before what they point to, references before what they name.
    """

    is_rebuild: bool = False
    new_sets: tuple[str, ...] = ()
    new_chains: tuple[str, ...] = ()
    removed_elements: Mapping[str, Elements] = msgspec.field(default_factory=dict)
    written_chains: tuple[str, ...] = ()
    removed_chains: tuple[str, ...] = ()
    added_elements: Mapping[str, Elements] = msgspec.field(default_factory=dict)
    removed_sets: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.has_elements_alone or bool(self.added_elements or self.removed_elements)

    @property
    def names(self) -> set[str]:
        """Every chain and set it touches."""
        if self.has_elements_alone:
            return {*self.removed_elements, *self.added_elements}
        return {
            *self.new_sets, *self.new_chains, *self.removed_elements, *self.written_chains, *self.removed_chains,
            *self.added_elements, *self.removed_sets,
        }  # fmt: skip

    @property
    def has_elements_alone(self) -> bool:
        """Nothing comes, goes or is written but elements of sets that stand."""
        return not (
            self.is_rebuild or self.new_sets or self.new_chains or self.written_chains or self.removed_chains
            or self.removed_sets
        )  # fmt: skip

    @property
    def takes_elements(self) -> bool:
        """Whether something that stands in a set is in it no longer, or may be."""
        return self.is_rebuild or bool(self.removed_sets or self.removed_elements)

    @property
    def element_count(self) -> int:
        return sum(map(len, self.removed_elements.values())) + sum(map(len, self.added_elements.values()))

    @property
    def changes(self) -> int:
        """Kernel objects touched: a chain with its rules is one, each element of a set is one."""
        if self.has_elements_alone:
            return self.element_count
        chains = {*self.new_chains, *self.written_chains, *self.removed_chains}
        return len(chains) + len(self.new_sets) + len(self.removed_sets) + self.element_count


def reconcile(desired: Table, observed: Table | None, names: Iterable[str] | None = None) -> Plan:
    """The plan that makes ``observed`` equal to ``desired``.

    ``names`` limits it to what may differ; None looks at everything. ``observed`` None: there is no table. A chain
    whose hook, or a set whose kind, is another one cannot be changed in place, and what to do with a set of a kind
    we do not know (empty) is not ours to guess: the whole table is rebuilt.
    """
    if observed is None:
        return rebuild(desired)
    looked_at = sorted(desired.names() | observed.names() if names is None else set(names))
    new_sets: list[str] = []
    new_chains: list[str] = []
    written: list[str] = []
    removed_chains: list[str] = []
    removed_sets: list[str] = []
    added: dict[str, Elements] = {}
    removed: dict[str, Elements] = {}
    for name in looked_at:
        wanted_chain, found_chain = desired.chains.get(name), observed.chains.get(name)
        if wanted_chain is None and found_chain is not None:
            removed_chains.append(name)
        elif wanted_chain is not None and found_chain is None:
            new_chains.append(name)
        elif wanted_chain is not None and found_chain is not None:
            if wanted_chain.hook != found_chain.hook:
                return rebuild(desired)
            if wanted_chain.tags != found_chain.tags:
                written.append(name)

        wanted_set, found_set = desired.sets.get(name), observed.sets.get(name)
        if found_set is not None and not found_set.kind:
            return rebuild(desired)
        if wanted_set is None and found_set is not None:
            removed_sets.append(name)
        elif wanted_set is not None:
            if found_set is None:
                new_sets.append(name)
                _note(added, name, wanted_set.elements)
            elif found_set.kind != wanted_set.kind:
                return rebuild(desired)
            elif found_set.elements is not wanted_set.elements:
                _note(added, name, wanted_set.elements - found_set.elements)
                _note(removed, name, found_set.elements - wanted_set.elements)
    return Plan(
        new_sets=tuple(new_sets),
        new_chains=tuple(new_chains),
        removed_elements=removed,
        written_chains=tuple(written),
        removed_chains=tuple(removed_chains),
        added_elements=added,
        removed_sets=tuple(removed_sets),
    )


def rebuild(desired: Table) -> Plan:
    """The plan that forgets whatever stands and makes the table anew."""
    return Plan(
        is_rebuild=True,
        new_sets=tuple(sorted(desired.sets)),
        new_chains=tuple(sorted(desired.chains)),
        added_elements={name: each.elements for name, each in sorted(desired.sets.items()) if each.elements},
    )


def _note(changes: dict[str, Elements], name: str, elements: Elements) -> None:
    if elements:
        changes[name] = elements


def _take(target: dict[str, Any], source: Mapping[str, Any], name: str) -> None:
    if name in source:
        target[name] = source[name]
    else:
        target.pop(name, None)
