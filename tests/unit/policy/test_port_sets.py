"""Named ports become sets of (address, protocol, port). Source: felix specification 4.4."""

from __future__ import annotations

from typing import Any

from netaddr import IPAddress, IPNetwork

from calico_core.model.endpoints import EndpointPort, HostEndpoint, WorkloadEndpoint
from calico_core.model.hoststate import HostChanges, HostRule, HostState, PortMember
from calico_core.model.keys import HostEndpointKey, PolicyKey, ProfileTagsKey, WorkloadEndpointKey
from calico_core.model.policies import Policy
from calico_core.model.rules import Rule
from calico_core.policy.resolver import PolicyResolver

LOCAL, ONE, TWO = (WorkloadEndpointKey("here", "k8s", name, "eth0") for name in ("local", "one", "two"))
HTTP = EndpointPort(name="http", protocol="tcp", port=80)


def member(address: str, port: int, protocol: int = 6) -> PortMember:
    parsed = IPAddress(address)
    return PortMember(parsed.version, int(parsed), protocol, port)


def offering(*addresses: str, ports: tuple[EndpointPort, ...] = (HTTP,), **fields: Any) -> WorkloadEndpoint:
    nets = [IPNetwork(address) for address in addresses]
    return WorkloadEndpoint(
        state="active",
        name="cali0",
        ipv4_nets=tuple(net for net in nets if net.version == 4),
        ipv6_nets=tuple(net for net in nets if net.version == 6),
        ports=ports,
        **fields,
    )


class World:
    """A local endpoint under a policy of one outbound rule."""

    def __init__(self, **rule: Any) -> None:
        self.resolver = PolicyResolver("here")
        self.state = HostState()
        self.resolver.in_sync()
        self.write(**rule)

    def write(self, **rule: Any) -> HostChanges:
        policy = Policy(selector="all()", outbound_rules=(Rule(protocol="tcp", **rule),))
        return self.put((LOCAL, WorkloadEndpoint(state="active", name="cali9")), (PolicyKey("default", "p"), policy))

    def put(self, *updates: Any) -> HostChanges:
        self.resolver.apply(updates)
        changes = self.resolver.flush()
        self.state.update(changes)
        return changes

    @property
    def rule(self) -> HostRule:
        return self.state.rules[next(iter(self.state.rules))].outbound[0]

    @property
    def members(self) -> frozenset[PortMember]:
        (members,) = self.state.port_sets.values()
        return members


def test_numbers_and_names_are_one_match() -> None:
    world = World(dst_ports=(443, "http"), not_src_ports=("web",))
    assert world.rule.dst_ports == ((443, 443),)
    assert len(world.rule.dst_port_sets) == len(world.rule.not_src_port_sets) == 1
    assert set(world.rule.port_sets) == set(world.state.port_sets)
    assert all(each.startswith("npt-") for each in world.rule.port_sets)


def test_who_offers_a_port_by_its_name_and_protocol() -> None:
    world = World(dst_ports=("http",))
    udp = EndpointPort(name="http", protocol="udp", port=81)
    world.put((ONE, offering("10.0.0.1/32", "fd00::1/128", ports=(HTTP, udp, EndpointPort(
        name="other", protocol="tcp", port=82)))))  # fmt: skip
    assert world.members == {member("10.0.0.1", 80), member("fd00::1", 80)}
    (change,) = world.put((ONE, offering("10.0.0.1/32", ports=(EndpointPort(
        name="http", protocol=6, port=8080),)))).port_sets  # fmt: skip
    assert change.added == {member("10.0.0.1", 8080)}
    assert change.removed == {member("10.0.0.1", 80), member("fd00::1", 80)}
    (change,) = world.put((ONE, offering("10.0.0.2/32", ports=()))).port_sets
    assert change.removed == {member("10.0.0.1", 8080)}
    assert not world.members


def test_host_endpoints_offer_ports_at_the_addresses_they_are_expected_to_have() -> None:
    world = World(dst_ports=("http",))
    world.put(
        (HostEndpointKey("there", "e"), HostEndpoint(expected_ipv4_addrs=(IPAddress("192.0.2.1"),), ports=(HTTP,)))
    )
    assert world.members == {member("192.0.2.1", 80)}


def test_the_selector_and_the_tag_of_the_side_narrow() -> None:
    world = World(dst_ports=("http",), dst_selector="a == 'x'", dst_tag="t")
    world.put(
        (ProfileTagsKey("p"), ("t",)),
        (ONE, offering("10.0.0.1/32", labels={"a": "x"}, profile_ids=("p",))),
        (TWO, offering("10.0.0.2/32", labels={"a": "x"})),
    )
    assert world.members == {member("10.0.0.1", 80)}
    world.put((ProfileTagsKey("p"), ()))
    assert not world.members


def test_a_member_leaves_with_the_last_who_offers_it() -> None:
    world = World(dst_ports=("http",))
    world.put((ONE, offering("10.0.0.1/32")))
    assert not world.put((TWO, offering("10.0.0.1/32"))).port_sets
    assert not world.put((ONE, None)).port_sets
    assert not world.put((TWO, None), (ONE, offering("10.0.0.1/32"))).port_sets, "moved within a batch"
    world.put((ONE, None))
    assert not world.members


def test_a_set_comes_with_all_its_members_and_goes_with_its_last_rule() -> None:
    world = World()
    world.put((ONE, offering("10.0.0.1/32")))
    (change,) = world.write(dst_ports=("http",)).port_sets
    assert change.is_new
    assert change.added == {member("10.0.0.1", 80)}
    changes = world.write()
    assert changes.removed_port_sets == (change.id,)
    assert not changes.removed_sets
    assert not world.state.port_sets


def test_equal_names_are_one_set_and_the_protocol_tells_them_apart() -> None:
    world = World(dst_ports=("http",), src_ports=("http",))
    assert len(world.state.port_sets) == 1
    udp = Rule(protocol="udp", dst_ports=("http",))
    tcp = Rule(protocol="tcp", dst_ports=("http",))
    world.put((PolicyKey("default", "p"), Policy(selector="", outbound_rules=(udp, tcp))))
    assert len(world.state.port_sets) == 2
