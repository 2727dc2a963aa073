"""Addresses of the node's tunnel devices: those that the reference system gave them, kept when our IPAM takes over.

It notes them at the Node object of the Kubernetes API. They are only assigned here, under the node's own handles; the
node publishes them when it starts, or gives them back where no pool is encapsulated.
"""

from __future__ import annotations

from collections.abc import Mapping

from calico_cni.kubernetes_api import KubernetesApi
from calico_cni.kubernetes_source import source_for_programs
from calico_core.errors import InvalidRequest, IpamError
from calico_core.interfaces.integration import IntegrationContext
from calico_core.model.addresses import parse_address
from calico_core.model.tunnels import TUNNELS, TunnelId
from calico_core.model.workloads import AddressRequest

_ANNOTATIONS = {
    ("ipip", 4): "projectcalico.org/IPv4IPIPTunnelAddr",
    ("vxlan", 4): "projectcalico.org/IPv4VXLANTunnelAddr",
    ("vxlan", 6): "projectcalico.org/IPv6VXLANTunnelAddr",
}


def keep_tunnel_addresses(context: IntegrationContext, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Those that cannot be kept, and why. Where no Kubernetes API is known there are none.

    :raises NotReady: the API or the datastore does not answer; :raises PolicySourceFailed: the API refuses us.
    """
    source = source_for_programs(environment, context.settings)
    if source is None:
        return ()
    api = KubernetesApi(source)
    try:
        annotations = api.node(context.host).metadata.annotations or {}
    finally:
        api.close()
    lost = []
    for tunnel in TUNNELS:
        text = annotations.get(_ANNOTATIONS[tunnel.kind, tunnel.version], "")
        if not text or context.ipam.by_handle(tunnel.handle(context.host)):
            continue
        try:
            _assign(context, tunnel, text)
        except (IpamError, InvalidRequest) as error:
            if error.retryable:
                raise
            lost.append(f"{text} of {tunnel.device}: {error}")
    return tuple(lost)


def _assign(context: IntegrationContext, tunnel: TunnelId, text: str) -> None:
    address = parse_address(text, field=_ANNOTATIONS[tunnel.kind, tunnel.version], version=tunnel.version)
    request = AddressRequest(
        handle=tunnel.handle(context.host),
        num_v4=int(tunnel.version == 4),
        num_v6=int(tunnel.version == 6),
        requested=(address,),
        attributes={"node": context.host, "type": f"{tunnel.kind}TunnelAddress"},
    )
    context.ipam.auto_assign(request)
