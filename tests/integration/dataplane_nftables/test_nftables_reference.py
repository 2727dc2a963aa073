"""What the reference agent left of nftables goes; tables of others that look like it stay."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from calico_core.dataplane.linux import netns
from calico_core.dataplane.nftables.driver import NftablesDataplane

pytestmark = pytest.mark.needs_root

LEFT = """
table ip calico {
  map filter-cali-fw { type ifname : verdict; }
  chain filter-FORWARD { type filter hook forward priority 0; policy accept; jump filter-cali-FORWARD; }
  chain filter-cali-FORWARD { jump cali-tw-1; }
  chain cali-tw-1 { counter drop; }
}
table ip6 calico {
  chain filter-cali-INPUT { counter accept; }
}
table ip theirs {
  chain filter-cali-like { counter accept; }
}
"""
NOT_THEIRS = "table ip calico {\n chain mine { counter accept; }\n}\n"


class Namespace(NamedTuple):
    name: str
    fd: int


@pytest.fixture
def host() -> Iterator[Namespace]:
    name = f"nfref-{os.getpid()}"
    made = Namespace(name, os.open(netns.create_namespace(name), os.O_RDONLY))
    yield made
    os.close(made.fd)
    netns.delete_namespace(name)


def nft(host: Namespace, *argv: str, stdin: str = "") -> str:
    command = ["ip", "netns", "exec", host.name, "nft", *argv]
    return subprocess.run(command, input=stdin, check=True, capture_output=True, text=True).stdout


def test_tables_of_the_reference_agent_are_removed_and_no_other(host: Namespace) -> None:
    nft(host, "-f", "-", stdin=LEFT)
    assert NftablesDataplane.remove_reference(host.fd) == ("table ip calico", "table ip6 calico")
    assert nft(host, "list", "tables").split("\n")[:-1] == ["table ip theirs"]
    assert NftablesDataplane.remove_reference(host.fd) == ()


def test_a_table_of_that_name_without_its_chains_is_somebodys(host: Namespace) -> None:
    nft(host, "-f", "-", stdin=NOT_THEIRS)
    assert NftablesDataplane.remove_reference(host.fd) == ()
    assert "chain mine" in nft(host, "list", "ruleset")
