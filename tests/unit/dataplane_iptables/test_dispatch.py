"""The tree over interface names: every name arrives at its chain, every other one at the miss."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from calico_core.dataplane.iptables.dispatch import tree

NAMES = st.sets(st.text("ab1-", min_size=0, max_size=8).map(lambda rest: f"cali{rest}"), max_size=60)


def walk(chains: dict[str, list[str]], interface: str) -> tuple[str, int]:
    """What iptables would do: where the packet ends, and how many rules it was compared with."""
    node, compared = "root", 0
    while node in chains:
        for rule in chains[node]:
            compared += 1
            words = rule.split()
            if words[0] == "-j":
                return "miss", compared
            option, pattern, goto, target = words
            assert (option, goto) == ("-i", "-g")
            if interface == pattern or (pattern.endswith("+") and interface.startswith(pattern[:-1])):
                node = target
                break
    return node, compared


@given(NAMES, NAMES)
def test_every_name_arrives(known: set[str], others: set[str]) -> None:
    chains = tree("root", "-i", {name: f"-g chain_{name}" for name in known}, ["-j DROP"])
    for name in known | others:
        assert walk(chains, name)[0] == (f"chain_{name}" if name in known else "miss")
    assert all(len(name) <= len("root-") + 15 for name in chains)


def test_few_steps_among_many() -> None:
    names = [f"cali{number:011x}" for number in range(0, 1 << 40, (1 << 40) // 1000)]
    chains = tree("root", "-i", dict.fromkeys(names, "-g there"), ["-j DROP"])
    assert max(walk(chains, name)[1] for name in names) < 60


def test_one_more_name_rewrites_little() -> None:
    names = {f"cali{number:011x}": "-g there" for number in range(1000)}
    before = tree("root", "-i", names, ["-j DROP"])
    after = tree("root", "-i", {**names, "cali00000000fff": "-g there"}, ["-j DROP"])
    assert len([name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]) <= 3
