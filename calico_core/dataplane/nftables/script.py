"""A plan as nft text: one command a line, each line with the subject it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calico_core.dataplane.nftables.elements import KINDS, element_text
from calico_core.dataplane.nftables.names import FAMILY, TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from calico_core.dataplane.reconcile import Chain, Plan, Table

#: Long lists go in several commands; nft reads a line as a whole.
_ELEMENTS_A_LINE = 2000
_WHERE = f"{FAMILY} {TABLE}"


def render_plan(
    plan: Plan, desired: Table, observed: Table | None, subject_of: Callable[[str, Any], str]
) -> tuple[list[str], list[str]]:
    """The lines, and the subject of each (empty: of the table itself)."""
    lines: list[str] = []
    subjects: list[str] = []
    for text, subject in _commands(plan, desired, observed, subject_of):
        lines.append(text)
        subjects.append(subject)
    return lines, subjects


def delete_table() -> list[str]:
    """Works whether it stands or not."""
    return [f"add table {_WHERE}", f"delete table {_WHERE}"]


def _commands(
    plan: Plan, desired: Table, observed: Table | None, subject_of: Callable[[str, Any], str]
) -> Iterator[tuple[str, str]]:
    if plan.is_rebuild:
        for text in (*delete_table(), f"add table {_WHERE}"):
            yield text, ""
    for name in plan.new_sets:
        kind = KINDS[desired.sets[name].kind]
        yield f"add {kind.keyword} {_WHERE} {name} {{ {kind.declaration} }}", subject_of(name, None)
    for name in plan.new_chains:
        yield f"add chain {_WHERE} {name}{_hook(desired.chains[name])}", subject_of(name, None)
    for name, elements in plan.removed_elements.items():
        assert observed is not None
        yield from _element_commands("delete", name, observed.sets[name].kind, elements, subject_of)
    for name in plan.removed_sets:
        if observed is not None and observed.sets[name].kind == "verdict":
            # what it leads to may be deleted before it
            yield f"flush map {_WHERE} {name}", ""
    for name in (*plan.written_chains, *plan.removed_chains):
        yield f"flush chain {_WHERE} {name}", subject_of(name, None)
    for name in (*plan.new_chains, *plan.written_chains):
        subject = subject_of(name, None)
        for rule in desired.chains[name].rules:
            yield f"add rule {_WHERE} {name} {rule}", subject
    for name in plan.removed_chains:
        yield f"delete chain {_WHERE} {name}", ""
    for name, elements in plan.added_elements.items():
        yield from _element_commands("add", name, desired.sets[name].kind, elements, subject_of)
    for name in plan.removed_sets:
        yield f"delete {KINDS[observed.sets[name].kind].keyword if observed else 'set'} {_WHERE} {name}", ""


def _hook(chain: Chain) -> str:
    if not chain.hook:
        return ""
    kind, hook, priority = chain.hook.split()
    return f" {{ type {kind} hook {hook} priority {priority}; policy accept; }}"


def _element_commands(
    verb: str, name: str, kind_name: str, elements: Any, subject_of: Callable[[str, Any], str]
) -> Iterator[tuple[str, str]]:
    kind = KINDS[kind_name]
    is_removal = verb == "delete"
    if isinstance(next(iter(elements)), tuple) and not kind_name.startswith(("ranges", "ports")):
        # these belong to one workload each: a line of their own says whose is refused
        for element in sorted(elements):
            text = element_text(kind, element, is_removal=is_removal)
            yield f"{verb} element {_WHERE} {name} {{ {text} }}", subject_of(name, element)
        return
    ordered = sorted(elements)
    for start in range(0, len(ordered), _ELEMENTS_A_LINE):
        texts = ", ".join(element_text(kind, each) for each in ordered[start : start + _ELEMENTS_A_LINE])
        yield f"{verb} element {_WHERE} {name} {{ {texts} }}", subject_of(name, None)
