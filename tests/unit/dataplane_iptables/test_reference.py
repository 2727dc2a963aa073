"""What is the reference agents', by name; what is not, stays."""

from __future__ import annotations

import pytest

from calico_core.dataplane.iptables.reference import foreign_sets, is_reference_chain, removal_script


@pytest.mark.parametrize(
    ("name", "is_theirs"),
    [
        ("felix-FORWARD", True), ("felix-p-_abc-i", True), ("cali-INPUT", True), ("cali-pri-_abc", True),
        ("califw-eth0", True), ("calipo-x", True),
        ("calico-FORWARD", False), ("cali1", False), ("DOCKER", False), ("KUBE-FORWARD", False), ("my-felix-x", False),
    ],
)  # fmt: skip
def test_chains(name: str, is_theirs: bool) -> None:
    assert is_reference_chain(name) is is_theirs


def test_sets() -> None:
    text = "\n".join(
        f"create {name} hash:ip family inet"
        for name in ("felix-v4-a", "cali40s:x", "cali60all-hosts", "calico-4h-tag-1", "KUBE-CLUSTER-IP")
    )
    assert foreign_sets(f"{text}\nadd felix-v4-a 1.2.3.4\n") == ("felix-v4-a", "cali40s:x", "cali60all-hosts")


def test_removal_empties_then_detaches_then_deletes() -> None:
    saved = """# by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:calico-OUTPUT - [0:0]
-A PREROUTING -j calico-PREROUTING
COMMIT
*filter
:FORWARD DROP [3:180]
:felix-FORWARD - [0:0]
:felix-to-1 - [0:0]
-A FORWARD -m comment --comment "see felix-FORWARD" -j DOCKER
-A FORWARD -j felix-FORWARD
-A INPUT -m comment --comment "cali:S93h" -j ACCEPT
-A felix-FORWARD -g felix-to-1
COMMIT
"""
    script, names = removal_script(saved)
    assert script.splitlines() == [
        "*filter",
        ":felix-FORWARD - [0:0]",
        ":felix-to-1 - [0:0]",
        "-D FORWARD -j felix-FORWARD",
        '-D INPUT -m comment --comment "cali:S93h" -j ACCEPT',
        "-X felix-FORWARD",
        "-X felix-to-1",
        "COMMIT",
    ]
    assert names == ("chain felix-FORWARD of filter", "chain felix-to-1 of filter")
    assert removal_script("*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n") == ("", ())
