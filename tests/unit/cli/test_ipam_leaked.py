"""``calicoctl ipam release --leaked``, ``configure`` and ``unfreeze``."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress

from calico_core.ipam.allocator import BlockIpam
from calico_core.ipam.leaks import find_leaks
from calico_core.ipam.local_view import LocalView
from calico_core.ipam.store_view import store_view
from calico_core.model.addresses import host_network
from calico_core.model.blocks import IpamConfig
from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import HostIpKey, IpamConfigKey, WorkloadEndpointKey
from calico_core.model.workloads import AddressRequest
from tests.doubles.ipam_store import check_laws, contents

if TYPE_CHECKING:
    from calico_core.datastore.records import TypedRecords
    from tests.unit.cli.conftest import Calicoctl

GONE, ALIVE = "rack-gone", "rack-alive"


def assign(records: TypedRecords, handle: str, host: str = GONE, age_s: float = 3600, **extra: str) -> IPAddress:
    when = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=age_s)
    attributes = {"orchestrator": "cni", "node": host, "timestamp": when.isoformat(), **extra}
    (address,) = BlockIpam(records, host).auto_assign(AddressRequest(handle=handle, num_v4=1, attributes=attributes))
    return address


@pytest.fixture
def pool(calicoctl: Calicoctl, records: TypedRecords) -> None:
    calicoctl.ok("pool", "add", "10.65.0.0/24")
    records.put(HostIpKey(ALIVE), "192.0.2.1")


def release(calicoctl: Calicoctl, *options: str) -> dict[str, str]:
    """Handle → why it is kept."""
    rows = calicoctl("ipam", "release", "--leaked", "--settle", "0", "-o", "json", *options).json
    return {row["handle"]: row["kept"] for row in rows}


@pytest.mark.usefixtures("pool")
def test_the_plan_comes_first_and_changes_nothing(calicoctl: Calicoctl, records: TypedRecords) -> None:
    address = assign(records, "h1")
    done = calicoctl("ipam", "release", "--leaked")
    assert done.code == 0
    for word in (str(address), "h1", GONE, "1 h", "is gone"):
        assert word in done.out
    assert "--yes" in done.err
    assert contents(records.store).holders() == {address: "h1"}


@pytest.mark.usefixtures("pool")
def test_what_belongs_to_a_host_that_is_gone_is_released(calicoctl: Calicoctl, records: TypedRecords) -> None:
    assign(records, "h1")
    living = assign(records, "live")
    record = WorkloadEndpoint(state="active", name="cali1", ipv4_nets=(host_network(living),))
    records.put(WorkloadEndpointKey(GONE, "cni", "c", "e"), record)
    elsewhere = assign(records, "elsewhere", ALIVE)
    young = assign(records, "young", age_s=10)
    plan = release(calicoctl, "--yes")
    assert set(plan) == {"h1", "elsewhere", "young"}
    assert plan["h1"] == ""
    assert ALIVE in plan["elsewhere"]
    assert "wait" in plan["young"]
    assert contents(records.store).holders() == {living: "live", elsewhere: "elsewhere", young: "young"}
    check_laws(records.store)
    assert release(calicoctl, "--yes", "--grace", "0")["young"] == ""
    assert young not in contents(records.store).holders()


@pytest.mark.usefixtures("pool")
def test_two_ways_at_once_are_bad_input(calicoctl: Calicoctl) -> None:
    assert calicoctl("ipam", "release").code == 2
    assert calicoctl("ipam", "release", "10.65.0.1", "--leaked").code == 2


@pytest.mark.usefixtures("pool")
def test_a_release_for_another_handle_is_refused(calicoctl: Calicoctl, records: TypedRecords) -> None:
    address = assign(records, "h1")
    assert calicoctl("ipam", "release", str(address), "--handle", "h2").code == 5
    assert contents(records.store).holders() == {address: "h1"}
    calicoctl.ok("ipam", "release", str(address), "--handle", "h1")


@pytest.mark.usefixtures("pool")
def test_the_kernel_and_the_lists_of_its_own_host_decide(records: TypedRecords) -> None:
    address = assign(records, "h1", ALIVE)
    listing = records.store.list("/calico/")
    store = store_view(listing.entries, listing.revision)

    def kept(**fields: object) -> str:
        local = LocalView(host=ALIVE, **{"lists": {"cni": {}}, **fields})
        (leak,) = find_leaks(store, local, now=dt.datetime.now(dt.UTC).timestamp(), grace_s=900)
        return leak.kept

    assert kept() == ""
    assert "kernel" in kept(host_routes={address: "cali1"})
    assert "in use" in kept(lists={"cni": {address: "a network"}})
    assert "could not be asked" in kept(lists={})


# --- rules -------------------------------------------------------------------------------------------


def configuration(records: TypedRecords) -> IpamConfig:
    found = records.get(IpamConfigKey())
    return IpamConfig() if found is None else found.record


def test_configure_changes_what_is_given_and_keeps_the_rest(calicoctl: Calicoctl, records: TypedRecords) -> None:
    assert calicoctl.ok("ipam", "configure", "--strict-affinity", "on") == "strict_affinity: False -> True\n"
    calicoctl.ok("ipam", "configure", "--max-blocks-per-host", "7", "--cooldown", "60")
    assert configuration(records) == IpamConfig(strict_affinity=True, max_blocks_per_host=7, cooldown_s=60)
    assert calicoctl.ok("ipam", "configure", "--cooldown", "60") == "unchanged\n"
    shown = calicoctl("ipam", "configure", "-o", "json").json
    assert shown == {"strict_affinity": True, "auto_allocate": True, "max_blocks_per_host": 7, "cooldown_s": 60}
    assert calicoctl("ipam", "show", "--config", "-o", "json").json == shown


def test_the_forbidden_pair_is_refused_whichever_way_it_comes(calicoctl: Calicoctl, records: TypedRecords) -> None:
    assert calicoctl("ipam", "configure", "--auto-allocate", "off").code == 5
    assert records.get(IpamConfigKey()) is None
    calicoctl.ok("ipam", "configure", "--auto-allocate", "off", "--strict-affinity", "on")
    done = calicoctl("ipam", "configure", "--strict-affinity", "off")
    assert done.code == 5
    assert "strict affinity" in done.err
    assert configuration(records).strict_affinity


@pytest.mark.parametrize("value", ["1201", "-1", "x"])
def test_a_cooldown_out_of_range_is_2(calicoctl: Calicoctl, records: TypedRecords, value: str) -> None:
    done = calicoctl("ipam", "configure", "--cooldown", value)
    assert done.code == 2
    assert "--cooldown" in done.err
    assert records.get(IpamConfigKey()) is None


def test_unfreeze_needs_a_node(calicoctl: Calicoctl) -> None:
    assert calicoctl("ipam", "unfreeze").code == 3


@pytest.mark.usefixtures("pool")
def test_no_host_is_judged_by_the_kernel_of_another(calicoctl: Calicoctl, records: TypedRecords) -> None:
    assign(records, "h1", ALIVE)
    done = calicoctl("--host", ALIVE, "ipam", "release", "--leaked", "--yes", "--settle", "0", "-o", "json")
    assert "kernel was not looked at" in done.err
    assert done.json[0]["kept"]
    assert set(contents(records.store).holders().values()) == {"h1"}
