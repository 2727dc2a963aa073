"""What an interface of the host does with a packet: the hooks of its host endpoint, one after the other.

Inbound: untracked, pre-DNAT, then what ends at the host or what is forwarded. Outbound: the last, and before it
untracked for what the host itself sends. What one hook allows is not asked at the later ones of the same interface;
the policy of a workload behind it is asked all the same. Fail-safe ports and neighbour discovery are open at all of
them but the one for forwarded traffic. Where there is no policy of IPv6 the last hook denies all else of it, and the
early ones are not asked. Source: felix specification 4.5 and 6.11.
"""

from __future__ import annotations

from collections.abc import Iterable

from calico_core.model.addresses import contains
from calico_core.model.failsafe import Failsafe
from calico_core.model.hoststate import ANY_INTERFACE, HostInterface, HostState, PolicyList
from calico_core.model.record import Value
from calico_core.policy.explain import Direction, Packet, Step, walk
from calico_core.policy.own_host import is_discovery
from calico_core.policy.policy_lists import Hook


class HookSteps(Value, frozen=True):
    """One hook: what was asked there of which packet, and the answer. No steps: nothing applies."""

    hook: Hook
    policies: PolicyList
    packet: Packet
    steps: tuple[Step, ...]

    @property
    def is_decided(self) -> bool:
        return bool(self.steps) and self.steps[-1].outcome != "pass"


def find_interface(state: HostState, name: str) -> HostInterface | None:
    """The policy of an interface of the host that is no workload's. None: it is not under policy."""
    own, others = state.interfaces.get(name), state.interfaces.get(ANY_INTERFACE)
    return own if own is not None or others is None or name in others.spares else others


def explain_interface(
    state: HostState,
    interface: HostInterface,
    direction: Direction,
    packet: Packet,
    *,
    is_forwarded: bool,
    original: Packet | None = None,
    failsafe: Iterable[Failsafe] = (),
    why_closed: str = "",
) -> list[HookSteps]:
    """The hooks up to the one that decides; where none does, the packet passes. ``original``: inbound, the packet
    before its destination was translated. ``failsafe``: of this direction. ``why_closed``: there is no policy for
    packets of its family, and why."""
    before = packet if original is None else original
    found: list[HookSteps] = []
    what = "neighbour discovery" if is_discovery(before) else "a fail-safe port"
    is_safe = is_discovery(before) or is_failsafe(direction, before, failsafe)
    if is_safe and not is_forwarded:
        reason = f"{what}: open whatever policy says"
        safe = Step(endpoint=interface.key, direction=direction, outcome="allow", reason=reason)
        return [HookSteps(hook="normal", policies=PolicyList(), packet=packet, steps=(safe,))]
    hooks = _hooks(interface, direction, is_forwarded=is_forwarded)
    if why_closed:
        hook, policies = hooks[-1]
        if is_forwarded and not policies.tiers:
            return []
        step = Step(endpoint=interface.key, direction=direction, outcome="deny", reason=why_closed, hook=hook)
        return [HookSteps(hook=hook, policies=PolicyList(), packet=packet, steps=(step,))]
    for hook, policies in hooks:
        if is_safe and hook != "forward":
            continue
        asked = before if hook in {"untracked", "pre_dnat"} else packet
        steps = tuple(walk(state, interface.key, hook, direction, policies, asked))
        found.append(HookSteps(hook=hook, policies=policies, packet=asked, steps=steps))
        if found[-1].is_decided:
            break
    return found


def is_failsafe(direction: Direction, packet: Packet, failsafe: Iterable[Failsafe]) -> bool:
    other = packet.src if direction == "inbound" else packet.dst
    return any(
        packet.protocol == protocol and packet.dst_port == port and (net is None or contains(net, other))
        for protocol, port, net in failsafe
    )


def _hooks(interface: HostInterface, direction: Direction, *, is_forwarded: bool) -> list[tuple[Hook, PolicyList]]:
    if direction == "inbound":
        early: list[tuple[Hook, PolicyList]] = [
            ("untracked", interface.untracked_inbound),
            ("pre_dnat", interface.pre_dnat),
        ]
        last, forward = interface.inbound, interface.forward_inbound
    else:
        early = [] if is_forwarded else [("untracked", interface.untracked_outbound)]
        last, forward = interface.outbound, interface.forward_outbound
    return [*early, ("forward", forward) if is_forwarded else ("normal", last)]
