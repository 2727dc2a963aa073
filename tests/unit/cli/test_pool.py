"""``calicoctl pool``: all or nothing, nothing overlapping, nothing lost that was not named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from netaddr import IPNetwork

from calico_core.ipam.allocator import BlockIpam
from calico_core.model.keys import POOLS, PoolKey
from calico_core.model.pools import Pool
from calico_core.model.workloads import AddressRequest

if TYPE_CHECKING:
    from calico_core.datastore.records import TypedRecords
    from tests.unit.cli.conftest import Calicoctl


def stored(records: TypedRecords) -> dict[str, Pool]:
    return {str(found.record.cidr): found.record for found in records.list(POOLS)}


def test_add_show_remove(calicoctl: Calicoctl, records: TypedRecords) -> None:
    assert calicoctl.ok("pool", "add", "10.65.0.0/16", "fd80::/64", "--nat-outgoing") == (
        "pool 10.65.0.0/16 created\npool fd80::/64 created\n"
    )
    assert stored(records)["10.65.0.0/16"] == Pool(cidr=IPNetwork("10.65.0.0/16"), masquerade=True)
    rows = calicoctl("pool", "show", "-o", "json").json
    assert [(row["cidr"], row["ip_version"], row["nat_outgoing"], row["block_size"]) for row in rows] == [
        ("10.65.0.0/16", 4, True, 26),
        ("fd80::/64", 6, True, 122),
    ]
    assert [row["cidr"] for row in calicoctl("pool", "show", "--ipv6", "-o", "json").json] == ["fd80::/64"]
    assert [row["cidr"] for row in calicoctl("pool", "show", "--ipv4", "-o", "json").json] == ["10.65.0.0/16"]
    assert "| 10.65.0.0/16 | nat_outgoing | 26" in calicoctl.ok("pool", "show")
    assert calicoctl.ok("pool", "remove", "10.65.0.0/16") == "pool 10.65.0.0/16 removed\n"
    assert set(stored(records)) == {"fd80::/64"}


def test_host_bits_are_dropped_and_a_repeated_cidr_counts_once(calicoctl: Calicoctl, records: TypedRecords) -> None:
    assert calicoctl.ok("pool", "add", "10.65.1.2/16", "10.65.0.0/16") == "pool 10.65.0.0/16 created\n"
    assert set(stored(records)) == {"10.65.0.0/16"}


def test_adding_again_sets_the_two_old_flags_and_keeps_the_rest(calicoctl: Calicoctl, records: TypedRecords) -> None:
    before = Pool(
        cidr=IPNetwork("10.65.0.0/16"),
        masquerade=True,
        ipam=False,
        disabled=True,
        disable_bgp_export=True,
        block_size=28,
    )
    records.put(PoolKey(before.cidr), before)
    assert calicoctl.ok("pool", "add", "10.65.0.0/16", "--ipip") == "pool 10.65.0.0/16 updated\n"
    after = stored(records)["10.65.0.0/16"]
    assert (after.masquerade, after.ipip) == (False, "tunl0")
    assert (after.ipam, after.disabled, after.disable_bgp_export, after.block_size) == (False, True, True, 28)
    calicoctl.ok("pool", "add", "10.65.0.0/16", "--enabled", "--nat-outgoing")
    after = stored(records)["10.65.0.0/16"]
    assert (after.masquerade, after.ipip, after.disabled) == (True, None, False)


def test_vxlan_stays_until_switched_off(calicoctl: Calicoctl, records: TypedRecords) -> None:
    calicoctl.ok("pool", "add", "10.65.0.0/16", "--vxlan")
    calicoctl.ok("pool", "add", "10.65.0.0/16", "--nat-outgoing")
    assert stored(records)["10.65.0.0/16"].vxlan_mode == "always"
    calicoctl.ok("pool", "add", "10.65.0.0/16", "--no-vxlan")
    assert stored(records)["10.65.0.0/16"].vxlan_mode == ""


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (("10.65.0.0/24",), 5, "10.65.0.0/16"),
        (("10.0.0.0/8",), 5, "10.65.0.0/16"),
        (("10.70.0.0/16", "10.65.128.0/17"), 5, "10.65.128.0/17"),
        (("10.70.0.0/16", "10.70.1.0/24"), 5, "10.70.1.0/24"),
        (("10.65.0.0/16", "--block-size", "28"), 5, "block size"),
        (("10.70.0.0/27",), 2, "/26"),
        (("10.70.0.0/16", "--block-size", "10"), 2, "between 20 and 32"),
        (("10.70.0.0/16", "--block-size", "33"), 2, "--block-size"),
        (("127.0.0.0/8",), 2, "loopback"),
        (("fe80::/64",), 2, "link-local"),
        (("10.70.0.0",), 2, "/26"),
        (("10.70.0/16",), 2, "10.70.0"),
        (("fd80::/64", "--ipip"), 2, "IPv6"),
        (("10.70.0.0/16", "--ipip", "--vxlan"), 2, "IPIP"),
        (("10.70.0.0/16", "nonsense"), 2, "nonsense"),
    ],
)
def test_what_cannot_be_added_changes_nothing(
    calicoctl: Calicoctl, records: TypedRecords, arguments: tuple[str, ...], code: int, names: str
) -> None:
    calicoctl.ok("pool", "add", "10.65.0.0/16")
    before = stored(records)
    done = calicoctl("pool", "add", *arguments)
    assert done.code == code, done
    assert names in done.err
    assert done.out == ""
    assert stored(records) == before


def test_removing_what_is_not_there_is_4_and_nothing_goes(calicoctl: Calicoctl, records: TypedRecords) -> None:
    calicoctl.ok("pool", "add", "10.65.0.0/16")
    done = calicoctl("pool", "remove", "10.65.0.0/16", "10.66.0.0/16")
    assert done.code == 4
    assert "10.66.0.0/16" in done.err
    assert set(stored(records)) == {"10.65.0.0/16"}


def test_removing_a_pool_in_use_warns_and_names_addresses(calicoctl: Calicoctl, records: TypedRecords) -> None:
    calicoctl.ok("pool", "add", "10.65.0.0/16")
    (address,) = BlockIpam(records, "rack-a").auto_assign(AddressRequest(handle="h", num_v4=1))
    done = calicoctl("pool", "remove", "10.65.0.0/16")
    assert done.code == 0
    assert str(address) in done.err
    assert stored(records) == {}


def test_uses_are_given_shown_and_kept(calicoctl: Calicoctl, records: TypedRecords) -> None:
    calicoctl.ok("pool", "add", "10.65.0.0/16", "--uses", "tunnel")
    assert stored(records)["10.65.0.0/16"].allowed_uses == ("Tunnel",)
    assert "no_workload" in calicoctl.ok("pool", "show")
    calicoctl.ok("pool", "add", "10.65.0.0/16", "--nat-outgoing")
    assert stored(records)["10.65.0.0/16"].allowed_uses == ("Tunnel",)
    calicoctl.ok("pool", "add", "10.65.0.0/16", "--uses", "workload, tunnel")
    assert stored(records)["10.65.0.0/16"].allowed_uses == ("Workload", "Tunnel")
    assert "no_" not in calicoctl.ok("pool", "show")
    refused = calicoctl("pool", "add", "10.66.0.0/16", "--uses", "loadbalancer")
    assert (refused.code, "is not workload or tunnel" in refused.err) == (2, True)


def test_uses_of_other_writers_are_shown_as_they_count_and_kept(calicoctl: Calicoctl, records: TypedRecords) -> None:
    def write(uses: tuple[str, ...]) -> None:
        records.put(PoolKey(IPNetwork("10.65.0.0/16")), Pool(cidr=IPNetwork("10.65.0.0/16"), allowed_uses=uses))

    write(())
    (row,) = calicoctl("pool", "show", "-o", "json").json
    assert (row["uses"], row["options"]) == (["workload", "tunnel"], []), "none named: both"
    write(("L2Workload", "Tunnel"))
    (row,) = calicoctl("pool", "show", "-o", "json").json
    assert (row["uses"], row["options"]) == (["l2workload", "tunnel"], ["no_workload"])
    calicoctl.ok("pool", "add", "10.65.0.0/16", "--nat-outgoing")
    assert stored(records)["10.65.0.0/16"].allowed_uses == ("L2Workload", "Tunnel")
