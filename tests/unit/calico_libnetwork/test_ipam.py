"""IpamDriver. Source: libnetwork specification 4, 8 and 12 rows 2 to 4, 30."""

from __future__ import annotations

import time
from typing import Any

import pytest
from netaddr import IPAddress

from calico_core.model.keys import PoolKey
from calico_core.model.pools import Pool

from .conftest import CALICO_IPV4, HOST, Setup, net

ANY_V4, ANY_V6 = "CalicoPoolIPv4", "CalicoPoolIPv6"
GATEWAY = "com.docker.network.gateway"
NO_MATCH = "The requested subnet must match the CIDR of a configured Calico IP Pool."


def request(setup: Setup, pool: str = ANY_V4, address: str = "") -> str:
    body = {"PoolID": pool, "Address": address, "Options": None}
    reply = setup.ask("IpamDriver.RequestAddress", body)
    assert reply["Data"] == {}
    return str(reply["Address"])


def refused(setup: Setup, pool: str = ANY_V4, address: str = "", **options: str) -> str:
    body = {"PoolID": pool, "Address": address, "Options": options or None}
    return setup.refused("IpamDriver.RequestAddress", body)


@pytest.mark.parametrize(
    ("asked", "reply"),
    [
        ({}, (ANY_V4, "0.0.0.0/0", "0.0.0.0/0")),
        ({"V6": True}, (ANY_V6, "::/0", "::/0")),
        ({"Pool": "10.65.0.0/24"}, ("10.65.0.0/24", "10.65.0.0/24", "0.0.0.0/0")),
        ({"Pool": "10.65.0.77/24"}, ("10.65.0.0/24", "10.65.0.0/24", "0.0.0.0/0")),
        ({"Pool": "FD80:65:0::/120", "V6": True}, ("fd80:65::/120", "fd80:65::/120", "::/0")),
    ],
)
def test_pool(setup: Setup, asked: dict[str, Any], reply: tuple[str, str, str]) -> None:
    body = {"AddressSpace": "CalicoLocalAddressSpace", "SubPool": "", "Options": {}, **asked}
    for _ in range(2):
        pool_id, pool, gateway = reply
        assert setup.ask("IpamDriver.RequestPool", body) == {
            "PoolID": pool_id,
            "Pool": pool,
            "Data": {GATEWAY: gateway},
        }
        assert setup.ask("IpamDriver.ReleasePool", {"PoolID": pool_id}) == {}


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"Pool": "10.66.0.0/24"}, NO_MATCH),
        ({"Pool": "10.65.0.0/25"}, NO_MATCH),
        ({"Pool": "10.65.0.0/24", "V6": True}, NO_MATCH),
        ({"Pool": "10.67.0.0/24"}, NO_MATCH),
        ({"Pool": "10.65.0.0/24", "SubPool": "10.65.0.0/28"}, "does not support sub pools"),
        ({"Options": {"foo": "bar"}}, "Arbitrary options are not supported"),
    ],
)
def test_pool_refused(setup: Setup, asked: dict[str, Any], text: str) -> None:
    setup.records.put(PoolKey(net("10.67.0.0/24")), Pool(cidr=net("10.67.0.0/24"), disabled=True))
    assert text in setup.refused("IpamDriver.RequestPool", asked, status=400)


def test_automatic_addresses(setup: Setup) -> None:
    assert request(setup) == "10.65.0.1/32"
    assert request(setup) == "10.65.0.2/32"
    assert request(setup, ANY_V6) == "fd80:65::1/128"
    assert request(setup, "10.65.0.0/24") == "10.65.0.3/32"
    handle, attributes = setup.ipam.held[IPAddress("10.65.0.3")]
    assert handle is not None
    assert handle.startswith(f"libnetwork.{HOST}.")
    assert attributes == {"orchestrator": "libnetwork", "node": HOST, "pool": "10.65.0.0/24"}
    assert len({holder for holder, _ in setup.ipam.held.values()}) == 4


def test_no_addresses(setup: Setup) -> None:
    setup.ipam.pools = (net("10.65.0.0/31"),)
    assert request(setup) == "10.65.0.1/32"
    none = "There are no available IP addresses in the configured Calico IP pools"
    assert refused(setup) == none
    assert refused(setup, ANY_V6) == none
    assert refused(setup, "10.70.0.0/24").startswith("The network references a Calico pool which has been deleted")


def test_exact_addresses(setup: Setup) -> None:
    assert request(setup, ANY_V4, "10.65.0.9") == "10.65.0.9/32"
    assert request(setup, ANY_V6, "FD80:65:0::9") == "fd80:65::9/128"
    assert refused(setup, ANY_V4, "10.65.0.9") == "The address 10.65.0.9 is already in use"
    outside = "The address 11.0.0.1 is not in one of the configured Calico IP pools"
    assert refused(setup, ANY_V4, "11.0.0.1") == outside
    assert "is not in the pool 10.65.0.0/24" in refused(setup, "10.65.0.0/24", "10.66.0.1")


def test_gateway(setup: Setup) -> None:
    text = refused(setup, ANY_V4, "10.65.0.1", RequestAddressType=GATEWAY)
    assert text == "Calico IPAM does not support specifying a gateway."
    body = {"PoolID": ANY_V4, "Address": "0.0.0.0", "Options": {"RequestAddressType": GATEWAY}}
    assert setup.ask("IpamDriver.RequestAddress", body) == {"Address": "0.0.0.0/0", "Data": {}}
    assert not setup.ipam.held


def test_release(setup: Setup) -> None:
    request(setup, ANY_V4, "10.65.0.9")
    request(setup, ANY_V4, "10.65.0.10")
    for address in ("10.65.0.9", "10.65.0.9", "", "0.0.0.0", "::", "11.0.0.1", None):
        assert setup.ask("IpamDriver.ReleaseAddress", {"PoolID": ANY_V4, "Address": address}) == {}
    assert [str(address) for address in setup.ipam.held] == ["10.65.0.10"]


@pytest.mark.parametrize(
    ("attributes", "is_released"),
    [
        ({}, True),
        ({"orchestrator": "libnetwork", "node": HOST}, True),
        ({"orchestrator": "libnetwork", "node": "gone"}, True),
        ({"orchestrator": "mesos", "node": HOST}, False),
        ({"orchestrator": "cni"}, False),
    ],
)
def test_late_release_frees_nothing_of_others(setup: Setup, attributes: dict[str, object], is_released: bool) -> None:
    setup.ipam.held[IPAddress("10.65.0.9")] = ("somebody", attributes)
    body = {"PoolID": ANY_V4, "Address": "10.65.0.9"}
    if is_released:
        setup.ask("IpamDriver.ReleaseAddress", body)
    else:
        assert "is held by" in setup.refused("IpamDriver.ReleaseAddress", body)
    assert bool(setup.ipam.held) is not is_released


def leftover(setup: Setup, *, age_s: float, node: str = HOST) -> None:
    """An address of a container that an engine left behind when it was killed."""
    handle = f"libnetwork.{node}.{time.time_ns() - int(age_s * 1e9):016x}00000000"
    setup.ipam.held[IPAddress("10.65.0.5")] = (handle, {"orchestrator": "libnetwork", "node": node})


def test_fixed_address_after_a_crash_is_taken_over(setup: Setup) -> None:
    leftover(setup, age_s=3600)
    assert request(setup, ANY_V4, "10.65.0.5") == "10.65.0.5/32"
    assert "already in use" in refused(setup, ANY_V4, "10.65.0.5")


@pytest.mark.parametrize("why", ["young", "other host", "endpoint", "auxiliary"])
def test_fixed_address_that_is_not_a_leftover(setup: Setup, why: str) -> None:
    leftover(setup, age_s=1 if why == "young" else 3600, node="node2" if why == "other host" else HOST)
    setup.create_network(
        v4=[{**CALICO_IPV4, "AuxAddresses": {"x": "10.65.0.5/24"}} if why == "auxiliary" else CALICO_IPV4]
    )
    if why == "endpoint":
        setup.create_endpoint()
    assert "already in use" in refused(setup, ANY_V4, "10.65.0.5")
