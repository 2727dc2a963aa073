"""Taking out of the kernel what an iptables dataplane left: ours, for a dataplane of another kind that has taken over,
and the reference agents', for a host that came from them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from calico_core.dataplane.iptables.names import PREFIX
from calico_core.dataplane.iptables.reference import foreign_sets, removal_script
from calico_core.dataplane.iptables.tools import available_tools, is_legacy_used
from calico_core.log import get_logger

if TYPE_CHECKING:
    from calico_core.dataplane.iptables.policy_tables import PolicyTables
    from calico_core.dataplane.iptables.tools import Tools

_FAMILIES = (4, 6)

log = get_logger(__name__)


def stands(namespace_fd: int | None = None) -> bool:
    """Whether chains of ours see what is forwarded, in either backend. No iptables: they do not.

    :raises ToolFailed: the host does not say.
    """
    jump = re.compile(rf"^-A FORWARD .*-j {PREFIX}", re.MULTILINE)
    return any(jump.search(tools.save(4)) for tools in _used(namespace_fd))


def remove_ours(namespace_fd: int | None = None) -> None:
    """The chains, jumps and sets of ours, in either backend; routes stay. Nothing there, or no iptables, is fine.

    :raises ToolFailed: something could not be removed.
    """
    removed: list[str] = []
    for tools in _used(namespace_fd):
        if any(f":{PREFIX}" in tools.save(family) for family in _FAMILIES):
            _tables(tools).purge_chains()
            removed.append(f"chains ({tools.backend})")
    # the backends share the sets
    for tools in available_tools(namespace_fd)[:1]:
        if f"create {PREFIX}" in tools.save_sets():
            _tables(tools).purge()
            removed.append("sets")
    if removed:
        log.info("iptables.removed", what=removed)


def remove_reference(namespace_fd: int | None = None) -> tuple[str, ...]:
    """The chains, rules and sets of the reference agents, old and new, in either backend. Gives what was removed.

    For an operator who knows that no such agent is to run here again: until ours is in force, nothing is then closed.

    :raises ToolFailed: something could not be removed.
    """
    removed: list[str] = []
    for tools in _used(namespace_fd):
        for family in _FAMILIES:
            script, names = removal_script(tools.save(family))
            if script:
                tools.restore(family, script)
                removed += [f"{name} (IPv{family}, {tools.backend})" for name in names]
    for tools in available_tools(namespace_fd)[:1]:
        names = foreign_sets(tools.save_sets())
        if names:
            tools.destroy_sets(names)
            removed += [f"set {name}" for name in names]
    return tuple(removed)


def _tables(tools: Tools) -> PolicyTables:
    """Imported here: every start of the other dataplane asks what stands, and hardly any has something to remove."""
    from calico_core.dataplane.iptables.policy_tables import PolicyTables
    from calico_core.interfaces.dataplane import DataplaneOptions

    return PolicyTables(DataplaneOptions(), tools)


def _used(namespace_fd: int | None) -> list[Tools]:
    """Those backends in which there may be something: asking the legacy one loads its tables."""
    return [
        tools for tools in available_tools(namespace_fd) if tools.backend != "legacy" or is_legacy_used(namespace_fd)
    ]
