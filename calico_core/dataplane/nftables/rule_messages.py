"""A plan as nf_tables messages of our own: chains, their rules, elements, and sets of plain addresses.

The order is that of :mod:`script`. None for a plan with anything that has no message here.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING

from calico_core.dataplane.linux.netlink import NLM_F_APPEND, NLM_F_CREATE, attribute, text
from calico_core.dataplane.nftables.elements import KINDS
from calico_core.dataplane.nftables.names import TABLE
from calico_core.dataplane.nftables.rule_encoder import encode_rule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from calico_core.dataplane.reconcile import Plan, Table

_SUBSYSTEM = 10 << 8
NEWCHAIN, DELCHAIN, NEWRULE, DELRULE, NEWSET, DELSET = (_SUBSYSTEM | number for number in (3, 5, 6, 8, 9, 11))
_NFPROTO_INET = 1
#: nfgenmsg and the table's name: how every body begins.
_HEAD = bytes((_NFPROTO_INET, 0, 0, 0)) + text(1, TABLE)
_U32 = struct.Struct(">I")
#: Beyond this libnftables' fixed cost no longer matters, and a refusal is better told by it.
_MOST_RULES = 4096
_PLAIN_SETS = ("hosts4", "hosts6", "ranges4", "ranges6")
_KEY_BYTES = {4: 4, 6: 16}
#: libnftnl's user data of a set: its keys are in network order.
_KEY_BYTE_ORDER = bytes((0, 4)) + (2).to_bytes(4, sys.byteorder)

Message = tuple[int, int, bytes]


def before_elements(plan: Plan, desired: Table) -> list[Message] | None:
    """What comes before elements are removed: sets and chains to be. None: there is something for libnftables."""
    if plan.is_rebuild or any(desired.chains[name].hook for name in plan.new_chains):
        return None
    messages: list[Message] = []
    for number, name in enumerate(plan.new_sets, 1):
        kind = KINDS[desired.sets[name].kind]
        if kind.name not in _PLAIN_SETS:
            return None
        body = _HEAD + text(2, name) + _u32(3, kind.flags) + _u32(4, kind.key_type)
        body += _u32(5, _KEY_BYTES[kind.family]) + _u32(10, number) + attribute(13, _KEY_BYTE_ORDER)
        messages.append((NEWSET, NLM_F_CREATE, body))
    messages += [(NEWCHAIN, NLM_F_CREATE, _HEAD + text(3, name)) for name in plan.new_chains]
    return messages


def chains(plan: Plan, desired: Table) -> list[Message] | None:
    """Rules out, rules in, chains out. None: a rule is not of a shape that we write."""
    messages = [(DELRULE, 0, _HEAD + text(2, name)) for name in (*plan.written_chains, *plan.removed_chains)]
    written = (*plan.new_chains, *plan.written_chains)
    if sum(len(desired.chains[name].rules) for name in written) > _MOST_RULES:
        return None
    for body in _rules(written, desired):
        if body is None:
            return None
        messages.append((NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body))
    return messages + [(DELCHAIN, 0, _HEAD + text(3, name)) for name in plan.removed_chains]


def after_elements(plan: Plan, observed: Table | None) -> list[Message] | None:
    """Sets that nothing names any more."""
    if observed is None or any(observed.sets[name].kind not in _PLAIN_SETS for name in plan.removed_sets):
        return None
    return [(DELSET, 0, _HEAD + text(2, name)) for name in plan.removed_sets]


def _rules(names: tuple[str, ...], desired: Table) -> Iterator[bytes | None]:
    for name in names:
        head = _HEAD + text(2, name)
        for rule in desired.chains[name].rules:
            encoded = encode_rule(rule)
            yield None if encoded is None else head + encoded


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, _U32.pack(value))
