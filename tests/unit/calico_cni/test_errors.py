from __future__ import annotations

import json

import pytest

from calico_cni import errors as cni
from calico_cni.results import encode_error
from calico_cni.versions import NEWEST, VERSIONS
from calico_core import errors

ROWS: list[tuple[BaseException, int, int]] = [
    # error, code since 0.4.0, code before
    (cni.IncompatibleVersion("9.9.9", VERSIONS), 1, 1),
    (cni.UnsupportedField("policy.type", "k8s", "not supported"), 2, 2),
    (cni.InvalidEnvironment("CNI_IFNAME", "missing"), 4, 100),
    (cni.Undecodable("configuration", "is not JSON"), 6, 100),
    (errors.InvalidRequest("mtu", "too large"), 7, 100),
    (errors.InvalidSelector("a ==", 4, "ends early"), 7, 100),
    (errors.OutsidePools("10.0.0.1"), 7, 100),
    (cni.InvalidNamespace("CNI_NETNS", "cannot be opened"), 8, 100),
    (errors.NamespaceGone("/run/netns/c1", "no such file"), 8, 100),
    (errors.NotReady("starting"), 11, 100),
    (errors.Unavailable("127.0.0.1:2379", "refused"), 11, 100),
    (errors.Conflict("/calico/x", None), 11, 100),
    (errors.Compacted(1, 5), 11, 100),
    (errors.Contended("block", 10), 11, 100),
    (errors.DaemonDown("/run/bird.ctl", "refused"), 11, 100),
    (cni.NotAvailable("no pool"), 50, 100),
    (cni.ExistingLimited("the agent is silent"), 51, 100),
    (cni.DelegateFailed("host-local", "it said nothing"), 104, 104),
    (cni.DelegateFailed("host-local", "busy", code=11), 11, 100),
    (cni.CollectionFailed((errors.Unavailable("127.0.0.1:2379", "refused"), RuntimeError())), 11, 100),
    (cni.CheckFailed("host interface cali1 is missing"), 100, 100),
    (errors.InvalidRecord("/calico/x", "$.a", "wrong"), 100, 100),
    (errors.InvalidSettings("mtu_bytes", "file", "wrong"), 100, 100),
    (errors.KeyExists("/calico/x", None), 100, 100),
    (errors.KeyMissing("/calico/x"), 100, 100),
    (errors.AffinityHeld("10.0.0.0/26", "node2"), 100, 100),
    (errors.NotAssigned("10.0.0.1"), 100, 100),
    (errors.StaleRelease("10.0.0.1", "a", "b"), 100, 100),
    (errors.PluginMissing("calico.ipam", "block"), 100, 100),
    (errors.ConfigRejected(3, "syntax"), 100, 100),
    (errors.PoolExhausted(4, 1, 0, "full"), 101, 101),
    (errors.NoPools(4), 101, 101),
    (errors.AddressInUse("10.0.0.1", "other"), 102, 102),
    (cni.PolicySourceFailed("no such pod"), 103, 103),
    (errors.KernelRefused("add veth", 1), 105, 105),
    (errors.ToolFailed(("nft",), 1, "no"), 105, 105),
    (errors.RouteTaken("10.0.0.1", "eth9"), 105, 105),
    (errors.InterfaceTaken("eth0", "the container"), 106, 106),
    (RuntimeError("secret"), 100, 100),
    (MemoryError(), 100, 100),
    (KeyboardInterrupt(), 100, 100),
]


@pytest.mark.parametrize(("error", "modern", "early"), ROWS, ids=[type(row[0]).__name__ for row in ROWS])
def test_codes_follow_the_version_asked_for(error: BaseException, modern: int, early: int) -> None:
    for version in VERSIONS:
        expected = early if version in cni.EARLY_VERSIONS else modern
        shape = json.loads(encode_error(error, version))
        assert (shape["code"], shape["cniVersion"]) == (expected, version)


def test_every_kind_in_the_table_is_tried() -> None:
    tried = {type(error) for error, *_ in ROWS}
    untried = {kind for kind, _ in cni.TABLE if not any(issubclass(each, kind) for each in tried)}
    assert untried == set()


def test_details_name_key_and_value() -> None:
    assert json.loads(encode_error(cni.UnsupportedField("mode", "vxlan", "no"), NEWEST))["details"] == "mode=vxlan"
    details = json.loads(encode_error(cni.IncompatibleVersion("2.0.0", VERSIONS), NEWEST))["details"]
    assert "2.0.0" in details
    assert all(version in details for version in VERSIONS)


def test_texts_of_unexpected_errors_stay_inside() -> None:
    assert b"secret" not in encode_error(RuntimeError("secret"), NEWEST)


def test_no_error_says_that_no_delete_is_needed() -> None:
    assert 3 not in {code for _, code in cni.TABLE}
