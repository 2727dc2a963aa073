"""Names and addresses of laboratories."""

from __future__ import annotations

import pytest
from netaddr import IPNetwork

from calico_core.errors import InvalidRequest
from calico_core.lab.plan import MOST_HOSTS, host_names, plan

DEFAULT_POOLS = (IPNetwork("192.168.0.0/16"), IPNetwork("fd80:24e2:f998:72d6::/64"))


@pytest.mark.parametrize("fabric", ["bridge", "router"])
@pytest.mark.parametrize("ipv6", [False, True])
def test_every_address_is_given_once_and_outside_the_default_pools(fabric: str, ipv6: bool) -> None:
    record, hosts = plan("lab", host_names(MOST_HOSTS), fabric=fabric, ipv6=ipv6)  # type: ignore[arg-type]
    given = [address for host in hosts for address in host.addresses]
    routers = {gateway for host in hosts for gateway in host.gateways} | set(record.addresses)
    assert len(given) == MOST_HOSTS * (2 if ipv6 else 1)
    assert len(set(given) | routers) == len(given) + len(routers)
    assert not any(address in pool for address in (*given, *routers) for pool in DEFAULT_POOLS)
    assert all(len(host.port) <= 15 for host in hosts)
    for host in hosts:
        for address, gateway, subnet in zip(host.addresses, host.gateways, host.subnets, strict=True):
            assert address in subnet
            assert gateway in subnet


def test_hosts_behind_a_router_share_no_subnet() -> None:
    _, hosts = plan("lab", host_names(MOST_HOSTS), fabric="router", ipv6=True)
    subnets = [subnet for host in hosts for subnet in host.subnets]
    assert len(set(subnets)) == len(subnets)


def test_a_number_of_hosts_gives_names() -> None:
    assert host_names(3) == ("host1", "host2", "host3")
    assert host_names(["rack-a", "b"]) == ("rack-a", "b")


@pytest.mark.parametrize(
    ("hosts", "says"),
    [
        (0, "between 1 and"),
        (MOST_HOSTS + 1, "between 1 and"),
        (["a", "a"], "repeat"),
        (["fabric"], "uses itself"),
        (["w-1"], "uses itself"),
        (["Upper"], "lower-case"),
        (["-a"], "lower-case"),
        (["a/b"], "lower-case"),
        (["a" * 25], "1 to 24"),
        ([""], "1 to 24"),
    ],
)
def test_bad_hosts_are_refused_by_name(hosts: int | list[str], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        host_names(hosts)
    assert caught.value.field == "hosts"
