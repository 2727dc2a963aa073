"""Which lists of a host endpoint are asked at its interface, and which of the interface's earlier ones count there.

A packet that an earlier list has let in is not asked again at the later hooks of the same interface. Both drivers go by
this. Source: felix specification 6.11. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from calico_core.model.hoststate import HostInterface, PolicyList

    Place = Literal[
        "inbound", "outbound", "forward_inbound", "forward_outbound", "untracked_inbound", "untracked_outbound",
        "pre_dnat",
    ]  # fmt: skip


IPV6_IS_OFF = "IPv6 is off"
"""Why an interface's policy lets no IPv6 pass but neighbour discovery and fail-safe ports: there is none of it."""


class Earlier(NamedTuple):
    """The lists that may have let a packet through before."""

    is_untracked: bool = False
    is_pre_dnat: bool = False


def is_asked(place: Place, policies: PolicyList) -> bool:
    """Whether there is anything to ask; the host itself is closed where no policy applies."""
    return place in ("inbound", "outbound") or bool(policies.tiers)


def earlier(place: Place, interface: HostInterface) -> Earlier:
    """What leaves after it was forwarded is asked in any case: it may have been let in elsewhere."""
    has_untracked = is_asked("untracked_inbound", interface.untracked_inbound)
    match place:
        case "pre_dnat":
            return Earlier(has_untracked)
        case "inbound" | "forward_inbound":
            return Earlier(has_untracked, is_asked("pre_dnat", interface.pre_dnat))
        case "outbound":
            return Earlier(is_asked("untracked_outbound", interface.untracked_outbound))
        case _:
            return Earlier()
