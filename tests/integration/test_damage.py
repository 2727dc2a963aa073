"""Somebody else writes into our part of the kernel between any two batches: the next batch is carried out all the
same, and one resync later everything is as wanted."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from calico_core.dataplane.iptables.driver import IptablesDataplane
from calico_core.dataplane.linux import netns
from calico_core.dataplane.nftables.driver import NftablesDataplane
from calico_core.interfaces.dataplane import DataplaneOptions
from calico_core.model.hoststate import HostState
from tests.doubles.host_states import host_states, step, whole

pytestmark = [pytest.mark.needs_root, pytest.mark.slow]
OPTIONS = DataplaneOptions(host="h")


class Host:
    """A namespace with a dataplane in it, and hands that damage what it made."""

    def __init__(self, stack: contextlib.ExitStack, driver: str) -> None:
        self.name = f"damage-{os.getpid()}-{driver}"
        fd = netns.open_namespace(str(netns.create_namespace(self.name)))
        stack.callback(netns.delete_namespace, self.name)
        stack.callback(os.close, fd)
        self.driver = driver
        self.dataplane: Any = (
            NftablesDataplane(OPTIONS, fd) if driver == "nftables" else IptablesDataplane(OPTIONS, fd, driver)  # type: ignore[arg-type]
        )
        stack.callback(self.dataplane.close)

    def differences(self) -> list[str]:
        if self.driver != "nftables":
            found: list[str] = self.dataplane.differences()
            return found
        standing = self.dataplane.observe()
        return ["no table"] if standing is None else list(self.dataplane.desired.differences(standing))

    def clear(self) -> None:
        self._run("nft flush ruleset; ipset destroy")
        for program in ("iptables-legacy", "ip6tables-legacy"):
            for table in ("raw", "mangle", "nat", "filter"):
                self._run(f"{program} -t {table} -F; {program} -t {table} -X")

    def damage(self, blow: tuple[int, int, int]) -> None:
        """One blow; what the kernel does not let happen is none. A rule of somebody else's that names a set of ours is
        not among them: it holds the set for as long as it stands."""
        kind, *picks = blow
        made = self._nft_blows(*picks) if self.driver == "nftables" else self._iptables_blows(*picks)
        self._run(made[kind % len(made)])

    def _run(self, script: str) -> str:
        argv = ["ip", "netns", "exec", self.name, "sh", "-c", script]
        return subprocess.run(argv, check=False, capture_output=True, text=True).stdout

    def _nft_blows(self, first: int, second: int) -> list[str]:
        table = self.dataplane.observe()
        chains, sets = (sorted(table.chains), sorted(table.sets)) if table is not None else (["x"], ["x"])
        chain, other, one_set = _pick(chains, first), _pick(chains, second), _pick(sets, second)
        return [
            "nft delete table inet calico",
            "nft flush table inet calico",
            "nft add table inet calico '{ flags dormant; }'",
            "nft add table inet other",
            "nft add chain inet calico hooked '{ type filter hook forward priority 5; policy drop; }'",
            "nft add map inet calico wl_from2 '{ type ifname : verdict; }'",
            f"nft flush chain inet calico {chain}",
            f"nft insert rule inet calico {chain} accept",
            f"nft add rule inet calico {chain} jump {other}",
            f"nft flush chain inet calico {chain}; nft delete chain inet calico {chain}",
            f"nft flush set inet calico {one_set} || nft flush map inet calico {one_set}",
            f"nft add rule inet calico {chain} ip saddr @{one_set} accept",
            f"nft add rule inet calico {chain} iifname vmap @{one_set}",
        ]

    def _iptables_blows(self, first: int, second: int) -> list[str]:
        program = f"iptables-{self.driver}"
        chains, table = [], ""
        for line in self._run(f"{program}-save").splitlines():
            table = line[1:] if line.startswith("*") else table
            if line.startswith(":calico-"):
                chains.append(f"-t {table} {{}} {line[1:].split()[0]}")
        chain, other = _pick(chains, first), _pick(chains, second)
        one_set = _pick(sorted(self._run("ipset list -n").split()), second)
        return [
            f"{program} -F",
            f"{program} -F FORWARD",
            f"{program} -t raw -F",
            f"{program} -F; {program} -X",
            f"{program} -t nat -F; {program} -t nat -X",
            f"{program} -N other",
            "ipset destroy",
            "ipset flush",
            f"{program} {chain.format('-F')}",
            f"{program} {chain.format('-I')} -j ACCEPT",
            f"{program} {chain.format('-A')} -j {other.split()[-1]}",
            f"{program} -N mine; {program} -A mine -j {other.split()[-1]}",
            f"ipset flush {one_set}",
            f"{program} -F; {program} -X; ipset destroy {one_set}; ipset create {one_set} hash:mac",
        ]


def _pick(choices: list[str], number: int) -> str:
    return choices[number % len(choices)] if choices else "none"


@pytest.fixture(params=["nftables", "nft", "legacy"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with contextlib.ExitStack() as stack:
        yield Host(stack, request.param)


_NUMBERS = st.integers(0, 999)
_BLOWS = st.tuples(st.tuples(_NUMBERS, _NUMBERS, _NUMBERS), st.booleans())


# a smaller example takes the kernel minutes to find; print_blob brings the same one again
@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
    print_blob=True,
)
@given(steps=st.lists(st.tuples(host_states(), _BLOWS), min_size=2, max_size=4))
def test_a_batch_and_a_resync_make_good_whatever_was_done(host: Host, steps: list[Any]) -> None:
    host.clear()
    kept = HostState()
    changes = whole(steps[0][0])
    for target, (blow, resyncs) in [*steps[1:], steps[0]]:
        kept.update(changes)
        assert host.dataplane.apply(changes).failures == ()
        host.damage(blow)
        if resyncs:
            assert host.dataplane.resync().failures == ()
            assert host.differences() == []
        changes = step(kept, target)
    assert host.dataplane.apply(changes).failures == ()
    assert host.dataplane.resync().failures == ()
    assert host.differences() == []
    assert host.dataplane.resync().changes == 0
