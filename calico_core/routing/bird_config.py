"""A ``RoutingState`` as the text of BIRD 2's configuration.

Pure, sorted and byte-stable: equal states give equal bytes whatever order their parts came in, so that comparing
with the file on disk tells whether there is anything to do. Source: node specification 2.2 and 2.3, and BIRD 2.0.12.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from netaddr import IPAddress, IPNetwork

from calico_core.interfaces.routing import Peer, RoutingState
from calico_core.model.keys import AffinityKey, BgpGlobalPeerKey, BgpHostAddressKey, BgpHostPeerKey, Key, PoolKey

#: Routes BIRD writes lose against the agent's own (IPv4 0, IPv6 512); BIRD's default of 32 would win in IPv6.
KERNEL_METRIC = 1024
_LOG_BYTES = 1_000_000
_TEXT_LIMIT = 200
_ORIGIN_PREFIX = {"mesh": "Mesh", "global": "Global", "node": "Node"}
_DEFAULT_ROUTE = {4: "0.0.0.0/0", 6: "::/0"}
_DEBUG = {"none": "", "info": "debug protocols { states };\n", "debug": "debug protocols all;\n"}
#: Interfaces whose networks are not ours to know: workloads, tunnels, other systems' bridges.
_FOREIGN_LINKS = ("cali*", "tap*", "*.calico", "tunl0", "kube-ipvs*", "docker*", "br-*")

_FUNCTIONS = """\
function calico_tunnel_route() {          # what the agent wrote for encapsulated pools stays here
  if source = RTS_INHERIT then {
    if ifname ~ "*.calico" then reject;
    if ifname ~ "*.cali" then reject;
    if ifname = "tunl0" then reject;
  }
}
function calico_second_hand() { if source = RTS_BGP then bgp_med = 100; }
"""


def render(state: RoutingState, *, log_file: str | None = None) -> str:
    """The whole file. ``log_file`` is rotated by BIRD at 1 MB and has no quotes; None logs to stderr.

    Where a line stems from one record it ends with ``# key``: a refusal of BIRD names the record by it.
    """
    parts = [
        _head(state, log_file),
        *(_blocks(state, version) for version in (4, 6)),
        _FUNCTIONS,
        *(_export_filter(state, version) for version in (4, 6)),
        *(_import_filter(version) for version in (4, 6)),
        *(_kernel_filter(state, version) for version in (4, 6)),
        _links(),
        *(_kernel(version) for version in (4, 6)),
        *(_template(state, version) for version in (4, 6)),
        "".join(_session(state, name, peer) for name, peer in sessions(state).items()),
    ]
    return "\n".join(part for part in parts if part)


def sessions(state: RoutingState) -> dict[str, Peer]:
    """Protocol name → peer, of every session rendered. The way back from BIRD's answers: the name itself is
    ambiguous. Peers without an own address of their family, and our own address, have no session."""
    own = {4: state.ipv4, 6: state.ipv6}
    peers = sorted(state.peers, key=lambda peer: (peer.ip.version, int(peer.ip)))
    return {_protocol_name(peer): peer for peer in peers if own[peer.ip.version] not in {None, peer.ip}}


def record_key(line: str) -> str:
    """The datastore key a rendered line stems from, or ''."""
    _, mark, key = line.rpartition("# /calico/")
    return f"/calico/{key.strip()}" if mark else ""


def _head(state: RoutingState, log_file: str | None) -> str:
    where = "stderr" if log_file is None else f'"{log_file}" {_LOG_BYTES} "{log_file}.1"'
    router_id = state.router_id if state.router_id is not None else state.ipv4
    return (
        f"# {_text(state.host)}, written by calico-node; do not edit\n"
        f"log {where} {{ info, remote, warning, error, auth, fatal, bug }};\n"
        f"{f'router id {router_id};' if router_id is not None else ''}\n"
        "timeformat protocol iso long;\n"
        # half of the restart time peers grant us; a dead peer must not hold back new kernel routes for longer
        "graceful restart wait 60;\n"
        f"{_DEBUG[state.log_level]}"
    )


def _blocks(state: RoutingState, version: int) -> str:
    """Own blocks as blackholes: what no workload of ours holds must not follow a default route out again."""
    blocks = _of(state.blocks, version)
    if not blocks:
        return ""
    routes = "".join(f"  route {cidr} blackhole;{_note(AffinityKey(state.host, cidr))}\n" for cidr in blocks)
    return f"protocol static calico_blocks_v{version} {{\n  ipv{version};\n{routes}}}\n"


def _export_filter(state: RoutingState, version: int) -> str:
    lines = ["calico_tunnel_route(); calico_second_hand();"]
    lines += [f"if net ~ {cidr} then reject;{_note(PoolKey(cidr))}" for cidr in _of(state.unexported, version)]
    for cidr in _of(state.blocks, version):
        lines += [f"if net = {cidr} then accept;", f"if net ~ {cidr} then reject;"]
    lines += [f"if net ~ {cidr} then accept;{_note(PoolKey(cidr))}" for cidr in _of(state.pools, version)]
    return _filter(f"calico_export_v{version}", [*lines, "reject;"])


def _import_filter(version: int) -> str:
    """A peer must not redirect everything a host sends."""
    return _filter(f"calico_import_v{version}", [f"if net = {_DEFAULT_ROUTE[version]} then reject;", "accept;"])


def _kernel_filter(state: RoutingState, version: int) -> str:
    """Device routes are the kernel's own, routes of encapsulated pools the agent's."""
    lines = ["if source = RTS_DEVICE then reject;"]
    lines += [f"if net ~ {cidr} then reject;{_note(PoolKey(cidr))}" for cidr in _of(state.encapsulated, version)]
    return _filter(f"calico_to_kernel_v{version}", [*lines, "accept;"])


def _links() -> str:
    """Without the direct protocol recursive next hops stay unreachable."""
    foreign = ", ".join(f'-"{pattern}"' for pattern in _FOREIGN_LINKS)
    return (
        "protocol device calico_device { scan time 10; }\n"
        "protocol direct calico_direct {\n"
        "  ipv4; ipv6;\n"
        f'  interface {foreign}, "*";\n'
        "}\n"
    )


def _kernel(version: int) -> str:
    return (
        f"protocol kernel calico_kernel_v{version} {{\n"
        f"  learn; persist; scan time 10; metric {KERNEL_METRIC}; merge paths on; graceful restart on;\n"
        f"  ipv{version} {{ import all; export filter calico_to_kernel_v{version}; }};\n"
        "}\n"
    )


def _template(state: RoutingState, version: int) -> str:
    own = state.ipv4 if version == 4 else state.ipv6
    if own is None:
        return ""
    return (
        f"template bgp calico_v{version} {{\n"
        f"  local {own} as {state.as_number}; multihop;\n"
        "  hold time 90; keepalive time 30;\n"
        "  connect delay time 2; connect retry time 5; error wait time 5, 30;\n"
        "  graceful restart on;\n"
        f"  ipv{version} {{ import filter calico_import_v{version}; export filter calico_export_v{version};"
        " next hop self; gateway recursive; add paths on; };\n"
        "}\n"
    )


def _session(state: RoutingState, name: str, peer: Peer) -> str:
    description = _text(peer.description) or f"{peer.origin} peer"
    passive = " passive on;" if peer.is_passive else ""
    return (
        f'protocol bgp {name} from calico_v{peer.ip.version} {{ description "{description}";'
        f" neighbor {peer.ip} as {peer.as_number};{passive} }}{_note(_peer_key(state, peer))}\n"
    )


def _peer_key(state: RoutingState, peer: Peer) -> Key:
    match peer.origin:
        case "mesh":
            return BgpHostAddressKey(peer.description, peer.ip.version)
        case "global":
            return BgpGlobalPeerKey(peer.ip)
        case "node":
            return BgpHostPeerKey(state.host, peer.ip)


def _protocol_name(peer: Peer) -> str:
    return f"{_ORIGIN_PREFIX[peer.origin]}_{_symbol(peer.ip)}"


def _symbol(ip: IPAddress) -> str:
    """``::ffff:1.2.3.4`` and ``::ffff:1:2:3:4`` must not meet in one name."""
    return str(ip).replace(".", "_" if ip.version == 4 else "p").replace(":", "_")


def _filter(name: str, lines: Iterable[str]) -> str:
    return f"filter {name} {{\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def _of(networks: Iterable[IPNetwork], version: int) -> list[IPNetwork]:
    own = {cidr for cidr in networks if cidr.version == version}
    return sorted(own, key=lambda cidr: (cidr.first, cidr.prefixlen))


def _note(key: Key) -> str:
    return f"  # {_text(key.path)}"


def _text(text: str) -> str:
    """Safe inside quotes and comments: BIRD has no escape in strings, and a line break would end a comment."""
    return "".join(_printable(text))[:_TEXT_LIMIT]


def _printable(text: str) -> Iterator[str]:
    for character in text:
        yield character if character.isascii() and character.isprintable() and character != '"' else "?"
