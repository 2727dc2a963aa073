"""What the reference agents leave in the kernel, known by its names. Pure.

The old one: chains and sets ``felix-…``. The newer one: chains ``cali-…`` (before that ``califw-``, ``calipo-`` and the
like), rules in the kernel's chains with a comment ``cali:…``, sets ``cali40…`` and ``cali60…``. Ours, ``calico-…``, are
none of these. Source: felix specification 5.
"""

from __future__ import annotations

import re

_CHAIN = re.compile(r"(felix-|cali-|cali[ft][wh]-|calip[io]-|califh-)")
_LEADS = re.compile(r" -[jg] (\S+)")
_MARKED = re.compile(r'--comment "?cali:')
_SET = re.compile(r"create ((?:felix-|cali(?:40|60|4t|6t))\S*) ")


def is_reference_chain(name: str) -> bool:
    return _CHAIN.match(name) is not None


def removal_script(text: str) -> tuple[str, tuple[str, ...]]:
    """From ``iptables-save``: what ``iptables-restore --noflush`` has to read for all of it to go, and the names of
    the chains that go; empty when there is nothing."""
    script: list[str] = []
    removed: list[str] = []
    table, chains, rules = "", list[str](), list[str]()
    for line in text.splitlines():
        if line.startswith("*"):
            table, chains, rules = line, [], []
        elif line.startswith(":"):
            chains += [name for name in (line[1:].split(" ", 1)[0],) if is_reference_chain(name)]
        elif line.startswith("-A ") and _is_theirs(line):
            rules.append(f"-D {line[3:]}")
        elif line == "COMMIT" and (chains or rules):
            # a declaration empties a chain; only then may those it led to go
            declared = [f":{name} - [0:0]" for name in chains]
            script += [table, *declared, *rules, *(f"-X {name}" for name in chains), "COMMIT"]
            removed += [f"chain {name} of {table[1:]}" for name in chains]
    return ("\n".join(script) + "\n" if script else ""), tuple(removed)


def foreign_sets(text: str) -> tuple[str, ...]:
    """From ``ipset save``: their sets."""
    return tuple(_SET.findall(text))


def _is_theirs(line: str) -> bool:
    """A rule of a chain that is not theirs, and that they wrote."""
    chain, _, rule = line[3:].partition(" ")
    if is_reference_chain(chain):
        return False
    target = _LEADS.search(f" {rule}")
    return _MARKED.search(rule) is not None or (target is not None and is_reference_chain(target[1]))
