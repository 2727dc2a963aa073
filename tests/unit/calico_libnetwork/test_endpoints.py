"""CreateEndpoint, Join, Leave, DeleteEndpoint. Source: libnetwork specification 3.3 to 3.6, 12 rows 7 to 9, 29."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from calico_core.errors import KernelRefused
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import ProfileRulesKey, WorkloadEndpointKey
from calico_core.model.workloads import PairRequest
from calico_libnetwork.network_record import NetworkKey

from .conftest import (
    CALICO_IPV4,
    ENDPOINT,
    FOREIGN,
    HOST,
    NETWORK,
    OTHER_ENDPOINT,
    OTHER_NETWORK,
    SANDBOX,
    Setup,
    an_endpoint,
    ids,
    net,
)

KEY = WorkloadEndpointKey(HOST, "libnetwork", "libnetwork", ENDPOINT)
INTERFACE = f"cali{ENDPOINT[:11]}"
PEER = f"tmp{ENDPOINT[:11]}"
GATEWAY_V6 = "fe80::ecee:eeff:feee:eeee"
HOP = {"Destination": "169.254.1.1/32", "RouteType": 1, "NextHop": ""}


def create(setup: Setup, *arguments: Any, **more: Any) -> str:
    """The MAC of the reply."""
    reply = setup.ask("NetworkDriver.CreateEndpoint", an_endpoint(*arguments, **more))
    assert set(reply) == {"Interface"}
    assert set(reply["Interface"]) == {"MacAddress"}
    return str(reply["Interface"]["MacAddress"])


@pytest.mark.parametrize("is_foreign", [False, True])
@pytest.mark.parametrize(
    ("v4", "v6", "nets"),
    [
        ("10.65.0.5/32", "", ["10.65.0.5/32"]),
        ("", "fd80:65::5/64", ["fd80:65::5/128"]),
        ("10.65.0.5/24", "fd80:65::5/128", ["10.65.0.5/32", "fd80:65::5/128"]),
    ],
)
def test_create(setup: Setup, is_foreign: bool, v4: str, v6: str, nets: list[str]) -> None:
    setup.create_network(v4=[FOREIGN if is_foreign else CALICO_IPV4])
    mac = create(setup, v4, v6)
    assert mac.startswith("02:")
    endpoint = setup.record(KEY)
    assert endpoint == WorkloadEndpoint(
        state="active",
        name=INTERFACE,
        mac=endpoint.mac,
        profile_ids=(NETWORK,),
        ipv4_nets=tuple(net(each) for each in nets if "." in each),
        ipv6_nets=tuple(net(each) for each in nets if ":" in each),
        ifname="eth0",
        network=NETWORK,
    )
    assert str(endpoint.mac) == mac
    assert create(setup, v4, v6) == mac
    assert setup.record(KEY) == endpoint


def test_mac_of_the_user_is_kept_and_not_repeated(setup: Setup) -> None:
    setup.create_network()
    assert create(setup, mac="02:42:0a:41:00:05") == ""
    assert str(setup.record(KEY).mac) == "02:42:0a:41:00:05"


def test_no_address(setup: Setup) -> None:
    text = setup.refused("NetworkDriver.CreateEndpoint", an_endpoint(""), status=400)
    assert text == "No address assigned for endpoint"


@pytest.mark.parametrize(("address", "is_calico"), [("10.65.0.5/32", True), ("10.99.0.5/24", False)])
def test_network_whose_record_was_lost(setup: Setup, address: str, is_calico: bool) -> None:
    create(setup, address)
    assert setup.record(NetworkKey(NETWORK)).is_calico_ipam is is_calico
    assert setup.record(ProfileRulesKey(NETWORK)) is not None
    assert setup.join()["Gateway"] == ("169.254.1.1" if is_calico else "")


def test_join(setup: Setup) -> None:
    setup.create_network(**{"org.projectcalico.mtu": "1400"})
    create(setup)
    expected = {
        "InterfaceName": {"SrcName": PEER, "DstPrefix": "cali"},
        "Gateway": "169.254.1.1",
        "GatewayIPv6": "",
        "StaticRoutes": [HOP],
        "DisableGatewayService": False,
    }
    assert setup.join() == expected
    assert setup.join() == expected
    endpoint = setup.record(KEY)
    assert setup.workloads.pairs == {
        INTERFACE: PairRequest(
            interface=INTERFACE, peer=PEER, mac=endpoint.mac, mtu_bytes=1400, addresses=endpoint.ipv4_nets
        )
    }
    assert len(INTERFACE) == 15
    assert (endpoint.netns, str(endpoint.ipv4_gateway)) == (SANDBOX, "169.254.1.1")


def test_join_with_ipv6(setup: Setup) -> None:
    setup.create_network(**{"org.projectcalico.ifprefix": "test"})
    create(setup, v6="fd80:65::5/128")
    reply = setup.join()
    assert reply["GatewayIPv6"] == GATEWAY_V6
    assert reply["StaticRoutes"] == [HOP, {"Destination": f"{GATEWAY_V6}/128", "RouteType": 1, "NextHop": ""}]
    assert reply["InterfaceName"]["DstPrefix"] == "test"


def test_join_with_the_ipam_of_the_engine(setup: Setup) -> None:
    setup.create_network(v4=[FOREIGN])
    create(setup, "10.99.0.2/24")
    reply = setup.join()
    assert (reply["Gateway"], reply["GatewayIPv6"], reply["StaticRoutes"]) == ("", "", [])
    assert reply["InterfaceName"] == {"SrcName": PEER, "DstPrefix": "cali"}


def test_join_that_fails_leaves_no_pair(setup: Setup) -> None:
    setup.create_network()
    create(setup)
    setup.workloads.failure = KernelRefused("create link", 12)
    text = setup.refused("NetworkDriver.Join", {**ids(), "SandboxKey": SANDBOX}, status=500)
    assert text == "create link: Cannot allocate memory"
    assert not setup.workloads.pairs
    assert setup.join()["Gateway"] == "169.254.1.1"


def test_join_of_the_unknown(setup: Setup) -> None:
    text = setup.refused("NetworkDriver.Join", {**ids(), "SandboxKey": SANDBOX}, status=400)
    assert "CreateEndpoint comes before Join" in text


@pytest.mark.parametrize("is_restarted", [False, True])
def test_second_network_of_a_container(setup: Setup, is_restarted: bool) -> None:
    subnet = {**CALICO_IPV4, "Pool": "10.65.0.0/24"}
    setup.create_network()
    setup.create_network(OTHER_NETWORK, v4=[subnet])
    create(setup)
    create(setup, "10.65.0.6/32", network=OTHER_NETWORK, endpoint=OTHER_ENDPOINT)
    assert setup.join()["Gateway"] == "169.254.1.1"
    if is_restarted:
        setup.stop()
        setup.start()
    reply = setup.join(OTHER_NETWORK, OTHER_ENDPOINT)
    assert reply["Gateway"] == ""
    assert reply["DisableGatewayService"] is True
    assert reply["StaticRoutes"] == [
        {"Destination": "169.254.1.2/32", "RouteType": 1, "NextHop": ""},
        {"Destination": "10.65.0.0/24", "RouteType": 0, "NextHop": "169.254.1.2"},
    ]
    setup.ask("NetworkDriver.Leave", ids())
    setup.ask("NetworkDriver.Leave", ids(OTHER_NETWORK, OTHER_ENDPOINT))
    assert setup.join(OTHER_NETWORK, OTHER_ENDPOINT)["Gateway"] == "169.254.1.1"


def test_second_network_without_a_subnet(setup: Setup) -> None:
    setup.create_network()
    setup.create_network(OTHER_NETWORK)
    create(setup)
    create(setup, "10.65.0.6/32", network=OTHER_NETWORK, endpoint=OTHER_ENDPOINT)
    setup.join()
    request = {**ids(OTHER_NETWORK, OTHER_ENDPOINT), "SandboxKey": SANDBOX}
    assert "created with --subnet" in setup.refused("NetworkDriver.Join", request, status=400)
    assert list(setup.workloads.pairs) == [INTERFACE]
    assert setup.join(OTHER_NETWORK, OTHER_ENDPOINT, sandbox="/other")["Gateway"] == "169.254.1.1"


def test_leave_and_delete(setup: Setup) -> None:
    setup.create_network()
    before = setup.paths()
    setup.ask("IpamDriver.RequestAddress", {"PoolID": "CalicoPoolIPv4", "Address": "10.65.0.5", "Options": None})
    create(setup)
    setup.join()
    for _ in range(2):
        assert setup.ask("NetworkDriver.Leave", ids()) == {}
        assert not setup.workloads.pairs
    for _ in range(2):
        assert setup.ask("NetworkDriver.DeleteEndpoint", ids()) == {}
        assert setup.paths() == before
    assert len(setup.ipam.held) == 1


def test_leave_goes_on_when_the_kernel_refuses(setup: Setup) -> None:
    setup.create_network()
    create(setup)
    setup.join()
    setup.workloads.failure = KernelRefused("delete link", 16)
    assert setup.ask("NetworkDriver.Leave", ids()) == {}
    assert setup.ask("NetworkDriver.DeleteEndpoint", ids()) == {}
    assert not setup.workloads.pairs


def test_failed_delete_can_be_repeated(setup: Setup) -> None:
    setup.create_network()
    create(setup)
    setup.workloads.failure = KernelRefused("delete link", 16)
    assert setup.refused("NetworkDriver.DeleteEndpoint", ids(), status=500) == "delete link: Device or resource busy"
    assert setup.ask("NetworkDriver.DeleteEndpoint", ids()) == {}


def test_operational_info(setup: Setup) -> None:
    assert setup.ask("NetworkDriver.EndpointOperInfo", ids()) == {"Value": {}}


def test_published_ports_are_mentioned_once(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    ports = {"com.docker.network.portmap": [{"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080}]}
    with caplog.at_level(logging.WARNING, "calico_libnetwork"):
        for _ in range(2):
            assert setup.ask("NetworkDriver.ProgramExternalConnectivity", {**ids(), "Options": ports}) == {}
            assert setup.ask("NetworkDriver.RevokeExternalConnectivity", ids()) == {}
    assert [record.message for record in caplog.records] == ["libnetwork.ports_not_published"]
