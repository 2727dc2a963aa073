"""The text of BIRD's configuration: golden files that BIRD itself accepts, and what must never get into it."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from netaddr import IPAddress, IPNetwork

from calico_core.interfaces.routing import Peer, RoutingState
from calico_core.routing.bird_config import record_key, render, sessions

GOLDEN = Path(__file__).parent / "golden"
MakeState = Callable[..., RoutingState]

VARIANTS = {
    "complete": {},
    "ipv4_alone": {"ipv6": None, "log_level": "debug"},
    "ipv6_alone": {"ipv4": None, "router_id": IPAddress("187.12.3.4"), "log_level": "none"},
    "bare": {"ipv6": None, "peers": (), "blocks": (), "pools": (), "encapsulated": (), "unexported": ()},
}


@pytest.fixture
def check(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    bird = shutil.which("bird", path="/usr/sbin:/usr/bin:/sbin:/usr/local/sbin")
    if bird is None:
        pytest.skip("the bird binary is not installed")

    def run(text: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "bird.conf"
        file.write_text(text)
        return subprocess.run([bird, "-p", "-c", str(file)], capture_output=True, text=True, timeout=10, check=False)

    return run


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_is_the_golden_file(variant: str, a_state: MakeState) -> None:
    assert render(a_state(**VARIANTS[variant])) == (GOLDEN / f"{variant}.conf").read_text()


@pytest.mark.parametrize("variant", VARIANTS)
def test_bird_accepts_it(
    variant: str, a_state: MakeState, check: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    ended = check(render(a_state(**VARIANTS[variant])))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_bird_accepts_a_mesh_of_a_thousand(
    a_state: MakeState, check: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    first = int(IPAddress("10.1.0.0"))
    peers = [
        Peer(ip=IPAddress(first + n), as_number=64511, origin="mesh", description=f"host-{n}") for n in range(1000)
    ]
    state = a_state(peers=tuple(peers))
    assert check(render(state)).returncode == 0
    assert len(sessions(state)) == 1000


@pytest.mark.parametrize("seed", range(20))
def test_order_of_input_does_not_matter(seed: int, a_state: MakeState) -> None:
    state = a_state()
    dice = random.Random(seed)
    shuffled = {
        name: tuple(dice.sample(getattr(state, name), len(getattr(state, name))))
        for name in ("peers", "blocks", "pools", "encapsulated", "unexported")
    }
    assert render(msgspec.structs.replace(state, **shuffled)) == render(state)


@pytest.mark.parametrize("name", ['x"; }\nprotocol evil {', "node\n2", "knödel", "a" * 5000, "# /calico/x"])
def test_a_foreign_name_stays_a_name(
    name: str, a_state: MakeState, check: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    peer = Peer(ip=IPAddress("10.0.0.2"), as_number=64511, origin="mesh", description=name)
    plain = Peer(ip=IPAddress("10.0.0.2"), as_number=64511, origin="mesh", description="plain")
    text = render(a_state(peers=(peer,), host=name))
    assert check(text).returncode == 0
    assert len(text.splitlines()) == len(render(a_state(peers=(plain,))).splitlines())


def test_log_file_is_rotated_by_bird(a_state: MakeState) -> None:
    assert 'log "/run/calico/bird.log" 1000000 "/run/calico/bird.log.1" {' in render(
        a_state(), log_file="/run/calico/bird.log"
    )


def test_sessions_lead_back_to_their_peers(a_state: MakeState) -> None:
    state = a_state()
    found = sessions(state)
    assert list(found) == ["Mesh_10_0_0_2", "Global_10_0_0_254", "Mesh_fd00__2", "Node_fd00__fe"]
    assert {name: str(peer.ip) for name, peer in found.items()}["Node_fd00__fe"] == "fd00::fe"
    assert all(f"protocol bgp {name} from" in render(state) for name in found)


def test_no_session_with_ourselves_and_none_without_an_address(a_state: MakeState) -> None:
    own = Peer(ip=IPAddress("10.0.0.1"), as_number=64511, origin="global")
    foreign_family = Peer(ip=IPAddress("fd00::7"), as_number=64511, origin="global")
    assert sessions(a_state(peers=(own, foreign_family), ipv6=None)) == {}


def test_addresses_that_look_alike_get_names_of_their_own(a_state: MakeState) -> None:
    peers = tuple(
        Peer(ip=IPAddress(ip), as_number=64511, origin="global")
        for ip in ("::ffff:1.2.3.4", "::ffff:1:2:3:4", "1::2:3", "1:2::3")
    )
    assert len(sessions(a_state(peers=peers))) == 4


def test_a_line_names_its_record(a_state: MakeState) -> None:
    lines = render(a_state()).splitlines()
    keys = {record_key(line) for line in lines} - {""}
    assert "/calico/bgp/v1/host/node-2/ip_addr_v4" in keys
    assert "/calico/bgp/v1/global/peer_v4/10.0.0.254" in keys
    assert "/calico/bgp/v1/host/node-1/peer_v6/fd00::fe" in keys
    assert "/calico/ipam/v2/host/node-1/ipv4/block/192.168.10.0-26" in keys
    assert record_key("accept;") == ""


def test_unexported_pools_are_refused_before_the_blocks(a_state: MakeState) -> None:
    state = a_state(unexported=(IPNetwork("192.168.0.0/16"),), pools=())
    body = render(state).partition("filter calico_export_v4")[2].partition("}")[0]
    assert body.index("net ~ 192.168.0.0/16 then reject") < body.index("net = 192.168.10.0/26 then accept")
