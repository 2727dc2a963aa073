"""What the ``calicoctl ipam`` commands look at: the store at one revision, and this host where it can be seen."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from calico_core.cli.context import CliContext
from calico_core.cli.output import note
from calico_core.cli.running import ask_node
from calico_core.errors import CalicoError, NotReady

if TYPE_CHECKING:
    from netaddr import IPAddress

    from calico_core.ipam.local_view import LocalView
    from calico_core.ipam.store_view import StoreView


def read_store(context: CliContext) -> StoreView:
    from calico_core.ipam.store_view import store_view
    from calico_core.model.keys import ROOT

    listing = context.records.store.list(ROOT)
    return store_view(listing.entries, listing.revision)


def read_host(context: CliContext, store: StoreView) -> LocalView | None:
    """None where the kernel cannot be looked at; a note says why."""
    from calico_core.node.local_view import read_local_view

    known = store.hosts | {getattr(found.key, "host", "") for found in store.endpoints}
    if os.geteuid() != 0:
        note("the kernel was not looked at: that needs root")
        return None
    if context.host not in known:
        note(f"the kernel was not looked at: {context.host} is not a host of this datastore (see --host)")
        return None
    own = _own_name(context)
    if context.host != own:
        note(f"the kernel was not looked at: this host is {own}, not {context.host}")
        return None
    try:
        return read_local_view(context.host, context.settings.interface_prefixes, lists=_lists())
    except CalicoError as error:
        note(f"the kernel was not looked at: {error}")
        return None


def _own_name(context: CliContext) -> str:
    """As the node here calls this host, else as settings do: another host must not be judged by this one's kernel."""
    from calico_core.node.composition import node_name

    try:
        found = ask_node(required=False)
    except NotReady:
        found = None
    return str(found["host"]) if found is not None else node_name(context.settings)


def _lists() -> dict[str, dict[IPAddress, str]]:
    from calico_core.model.addresses import parse_address

    try:
        found = ask_node("addresses", required=False)
    except NotReady as error:
        note(f"the integrations were not asked: {error}")
        return {}
    if found is None:
        note("the integrations were not asked: no node runs here")
        return {}
    return {
        name: {parse_address(text): whose for text, whose in addresses.items()} for name, addresses in found.items()
    }
