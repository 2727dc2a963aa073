"""Which addresses look leaked in the whole cluster, and which of them may be freed from where we stand. Pure.

Two signs, never one: no endpoint record, and nothing in the kernel of the host that assigned it. Another host's kernel
cannot be seen from here, unless the host itself is gone. Source: ipam specification 9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from calico_core.ipam.store_view import Held, addresses_of

if TYPE_CHECKING:
    from netaddr import IPAddress

    from calico_core.ipam.local_view import LocalView
    from calico_core.ipam.store_view import StoreView


class Leak(NamedTuple):
    """One handle. ``kept`` is why it is not to be freed from here; empty: it may be. ``age_s`` None: nobody noted
    when it was assigned."""

    handle: str
    held: tuple[Held, ...]
    host: str | None
    age_s: float | None
    why: str
    kept: str = ""

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        return tuple(each.address for each in self.held)


def find_leaks(store: StoreView, local: LocalView | None, *, now: float, grace_s: float) -> tuple[Leak, ...]:
    """``now`` is seconds since the epoch. Handles younger than ``grace_s`` are listed, and kept."""
    carried = {address for found in store.endpoints for address in addresses_of(found.record)}
    named = {found.record.name for found in store.endpoints}
    handles: dict[str, list[Held]] = {}
    for each in store.held():
        if each.handle is not None:
            handles.setdefault(each.handle, []).append(each)
    found: list[Leak] = []
    for handle, held in handles.items():
        host = held[0].host
        is_gone = host is not None and host not in store.hosts
        is_judged = all(each.orchestrator is not None or (each.is_tunnel and is_gone) for each in held)
        if not is_judged or any(each.address in carried for each in held) or (held[0].is_tunnel and not is_gone):
            continue
        times = [each.assigned_at for each in held]
        newest = max((at for at in times if at is not None), default=None)
        age_s = max(now - newest, 0.0) if newest is not None else None
        why = f"no endpoint carries it, and its host {host} is gone" if is_gone else "no endpoint carries it"
        kept = "" if is_gone else _kept(tuple(held), local, named)
        if not is_gone and not kept:
            why += f", nothing on {host} has it"
        if not kept and age_s is not None and age_s < grace_s:
            kept = f"it was assigned {age_s:.0f} s ago: wait until it is {grace_s:g} s"
        found.append(Leak(handle, tuple(held), host, age_s, why, kept))
    return tuple(sorted(found, key=lambda leak: (bool(leak.kept), leak.handle)))


def _kept(held: tuple[Held, ...], local: LocalView | None, named: set[str]) -> str:
    hosts = {each.host for each in held}
    if local is None or hosts != {local.host}:
        return f"only {', '.join(sorted(map(str, hosts)))} knows its kernel: run this there, as root"
    for each in held:
        sign = local.sign_of(each, named)
        if sign:
            return sign
        if each.orchestrator not in local.lists:
            return f"{each.orchestrator} could not be asked: no node runs here, or the integration is broken"
        if local.claims(each.address, each.orchestrator):
            return f"{each.orchestrator} has {each.address} in use"
    return ""
