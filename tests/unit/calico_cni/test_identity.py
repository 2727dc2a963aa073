from __future__ import annotations

import hashlib

import pytest

from calico_cni.identity import handle_of, identify, network_profile
from calico_core.model import codec
from calico_core.model.keys import ProfileRulesKey


def test_key_and_interface_come_from_container_and_interface() -> None:
    found = identify(host="node1", network="net1", container_id="c1", container_interface="eth0")
    digest = hashlib.sha1(b"c1/eth0").hexdigest()
    assert found.key.path == f"/calico/v1/host/node1/workload/cni/c1/endpoint/{digest}"
    assert found.interface == f"cali{digest[:11]}"
    assert len(found.interface) == 15


def test_containers_with_a_common_beginning_do_not_share_a_name() -> None:
    # cnitool makes ids that differ only after eleven characters
    names = {
        identify(host="n", network="x", container_id=f"cnitool-{n:020x}", container_interface="eth0").interface
        for n in range(500)
    }
    assert len(names) == 500


@pytest.mark.parametrize(
    ("interface", "handle"), [("eth0", "net1.c1"), ("eth1", "net1.c1.eth1"), ("net0", "net1.c1.net0")]
)
def test_handles(interface: str, handle: str) -> None:
    assert handle_of("net1", "c1", interface) == handle


def test_the_handle_of_an_id_with_a_dot_is_no_interface_of_another() -> None:
    assert handle_of("net1", "c1.eth1", "eth0") == "net1.c1~eth1"
    dotted = identify(host="n", network="net1", container_id="net1.c1", container_interface="eth0")
    assert dotted.legacy_handles == ()


def test_only_the_first_interface_may_have_a_handle_of_the_old_form() -> None:
    first, second = (
        identify(host="n", network="net1", container_id="c1", container_interface=name) for name in ("eth0", "eth1")
    )
    assert first.legacy_handles == ("c1",)
    assert second.legacy_handles == ()


def test_the_prefix_is_the_agent_s() -> None:
    found = identify(host="n", network="x", container_id="c1", container_interface="eth0", prefix="tap")
    assert found.interface.startswith("tap")
    assert len(found.interface) == 15


def test_the_profile_of_a_network_reads_as_the_reference_wrote_it() -> None:
    profile = network_profile("net1")
    assert (profile.name, profile.tags) == ("net1", ("net1",))
    stored = codec.encode(profile.rules)
    assert codec.decode(ProfileRulesKey("net1"), stored) == profile.rules
    assert [rule.src_tag for rule in profile.rules.inbound_rules] == ["net1"]
    assert [rule.action for rule in profile.rules.outbound_rules] == ["allow"]
