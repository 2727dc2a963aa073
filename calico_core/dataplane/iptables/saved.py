"""What ``iptables-save`` shows of ours, and the text for ``iptables-restore`` that leads from it to what is wanted.

Rules do not come back as they were written, so a rule is known by the tag in its comment; one without a tag of ours
in a chain of ours makes the chain differ. Source: iptables-restore(8). Pure.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

import msgspec

from calico_core.dataplane.iptables.layout import HOOKS, TABLES, jump
from calico_core.dataplane.iptables.names import FLOATING_CHAIN, PREFIX, SOURCE_CHAIN
from calico_core.dataplane.reconcile import Chain, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from calico_core.dataplane.reconcile import Plan

_TAG = re.compile(r'--comment "?calico:([0-9a-f]{12})\b')
_TO_OURS = re.compile(rf" -[jg] ({PREFIX}\S+)")
_COUNTED = re.compile(r"\[(\d+):(\d+)\] -A (\S+)")
_LEADS = re.compile(r" -d ([0-9a-fA-F.:]+)/\d+ .*--to-destination ([0-9a-fA-F.:]+)")
_SOURCE = re.compile(r" -s ([0-9a-fA-F.:]+)/\d+ ")


class Jumps(msgspec.Struct, frozen=True):
    """Rules of a chain that is not ours which lead to one of ours, as written there; whether they come first, or last
    where that is their place."""

    rules: tuple[str, ...] = ()
    is_in_place: bool = True


class SavedTable:
    """One table of one family: our chains, who leads to them, and addresses by who has them: the source addresses that
    are let in, by chain; the floating ones by the address they lead to."""

    __slots__ = ("jumps", "sources", "table")

    def __init__(self) -> None:
        self.table = Table()
        self.jumps: dict[str, Jumps] = {}
        self.sources: dict[str, frozenset[int]] = {}


class Line(msgspec.Struct, frozen=True):
    """One line of a script and the subject it stands for; empty: the table itself."""

    text: str
    subject: str = ""


def parse_saved(text: str, *, appends: bool = False) -> dict[str, SavedTable]:
    """By table; all of :data:`TABLES` are there. ``appends``: the place of our jumps is the end."""
    found = {name: SavedTable() for name in TABLES}
    current: SavedTable | None = None
    tags: dict[str, list[str]] = {}
    lines = text.splitlines()
    for line in lines:
        if line.startswith("*"):
            current, tags = found.get(line[1:]), {}
        elif current is None:
            continue
        elif line.startswith(":") and line[1:].startswith(PREFIX):
            tags[line[1:].split(" ", 1)[0]] = []
        elif line.startswith("-A "):
            _take_rule(current, tags, line[3:], appends=appends)
        elif line == "COMMIT":
            current.table.chains = {name: Chain(tags=tuple(each)) for name, each in tags.items()}
            # chains that are not ours are of interest only for what leads to ours
            current.jumps = {name: each for name, each in current.jumps.items() if each.rules}
            current = None
    return found


def _take_rule(saved: SavedTable, tags: dict[str, list[str]], line: str, *, appends: bool) -> None:
    name, _, rule = line.partition(" ")
    if name not in tags:
        before = saved.jumps.get(name)
        if _TO_OURS.search(f" {rule}"):
            had = before or Jumps()
            saved.jumps[name] = Jumps((*had.rules, rule), is_in_place=had.is_in_place)
        elif appends and before is not None:
            saved.jumps[name] = Jumps(before.rules, is_in_place=False)
        elif not appends and before is None:
            saved.jumps[name] = Jumps(is_in_place=False)
        return
    match = _TAG.search(rule)
    tags[name].append(match[1] if match else "foreign")
    if name == FLOATING_CHAIN and (leads := _LEADS.search(f" {rule}")):
        to = str(ip_address(leads[2]))
        saved.sources[to] = saved.sources.get(to, frozenset()) | {int(ip_address(leads[1]))}
    if name.startswith(SOURCE_CHAIN) and (source := _SOURCE.search(f" {rule}")):
        saved.sources[name] = saved.sources.get(name, frozenset()) | {int(ip_address(source[1]))}


def parse_counters(text: str, chains: Container[str]) -> list[tuple[str, list[tuple[int, int]]]]:
    """From ``iptables-save -c``: packets and bytes of each rule of these chains, once for each table they stand in."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif (match := _COUNTED.match(line)) and match[3] in chains:
            found.setdefault((table, match[3]), []).append((int(match[1]), int(match[2])))
    return [(name, lines) for (_, name), lines in found.items()]


def wanted_jumps(table: str, desired: Table) -> dict[str, Jumps]:
    return {base: Jumps((jump(ours),)) for base, ours in HOOKS[table].items() if ours in desired.chains}


def jump_commands(wanted: dict[str, Jumps], found: dict[str, Jumps], *, appends: bool = False) -> list[str]:
    """What makes them equal: ours are taken out and put in their place again."""
    commands: list[str] = []
    for base in sorted(wanted.keys() | found.keys()):
        have, want = found.get(base, Jumps()), wanted.get(base, Jumps())
        if have == want:
            continue
        commands += [f"-D {base} {rule}" for rule in have.rules]
        commands += [f"-A {base} {rule}" if appends else f"-I {base} 1 {rule}" for rule in want.rules]
    return commands


def render_table(
    table: str, plan: Plan, desired: Table, jumps: Iterable[str], subject_of: Callable[[str], str]
) -> list[Line]:
    """One transaction. Chains are declared before rules name them; a declaration empties a chain that stands, and
    only those that are declared are touched."""
    lines = [Line(f"*{table}")]
    written = (*plan.new_chains, *plan.written_chains)
    lines += [Line(f":{name} - [0:0]", subject_of(name)) for name in (*written, *plan.removed_chains)]
    for name in written:
        subject = subject_of(name)
        lines += [Line(f"-A {name} {rule}", subject) for rule in desired.chains[name].rules]
    lines += [Line(text) for text in jumps]
    lines += [Line(f"-X {name}") for name in plan.removed_chains]
    lines.append(Line("COMMIT"))
    return lines


def differences(family: int, table: str, believed: SavedTable, found: SavedTable) -> list[str]:
    """What somebody else changed, for people."""
    where = f"IPv{family} {table}"
    names = [f"chain {name} ({where})" for name in believed.table.differences(found.table)]
    bases = sorted(believed.jumps.keys() | found.jumps.keys())
    return names + [f"jumps of {base} ({where})" for base in bases if believed.jumps.get(base) != found.jumps.get(base)]
