from __future__ import annotations

import contextlib
import itertools
import socket

import pytest
from netaddr import IPAddress

from calico_core.dataplane.linux.conntrack import CT_NEW, CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, Conntrack
from calico_core.dataplane.linux.netlink import (
    NETLINK_NETFILTER,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NetlinkSocket,
    Request,
    attribute,
    nested,
)
from calico_core.dataplane.linux.prefix import AF_INET, host_prefix

pytestmark = pytest.mark.needs_root
_ports = itertools.count(1000)

CASES = {
    4: ("10.0.0.1", "10.0.0.2", "10.0.0.3"),
    6: ("fd00::1", "fd00::2", "fd00::3"),
}


@pytest.fixture
def table(host):
    made = Conntrack(host.fd)
    yield made
    made.close()


@pytest.fixture
def connect(host):
    """Enter a UDP connection into the table: original (source, destination) and reply (source, destination)."""
    with NetlinkSocket(NETLINK_NETFILTER, host.fd) as ctnetlink:

        def add(original: tuple[str, str], reply: tuple[str, str]) -> None:
            port = next(_ports)
            sides = []
            for kind, (source, destination) in ((CTA_TUPLE_ORIG, original), (CTA_TUPLE_REPLY, reply)):
                prefix = host_prefix(IPAddress(source))
                base = 1 if prefix.family == AF_INET else 3
                addresses = attribute(base, prefix.address) + attribute(
                    base + 1, host_prefix(IPAddress(destination)).address
                )
                ports = port.to_bytes(2, "big"), (53).to_bytes(2, "big")
                if kind == CTA_TUPLE_REPLY:
                    ports = ports[::-1]
                protocol = attribute(1, bytes((socket.IPPROTO_UDP,)))
                protocol += attribute(2, ports[0]) + attribute(3, ports[1])
                sides.append(nested(kind, nested(1, addresses), nested(2, protocol)))
            lifetime_s = attribute(7, (600).to_bytes(4, "big"))
            body = bytes((prefix.family, 0, 0, 0)) + b"".join(sides) + lifetime_s
            ctnetlink.execute(Request("enter connection", CT_NEW, NLM_F_CREATE | NLM_F_EXCL, body))

        yield add


@pytest.fixture(params=["as it comes", "by listing"])
def flush(request, table):
    if request.param == "as it comes":
        return lambda address: table.flush([address])
    return lambda address: table.flush_by_listing([host_prefix(address)])


@pytest.mark.parametrize("version", [4, 6])
def test_an_address_is_forgotten_wherever_it_stands(table, connect, flush, version):
    a, b, c = CASES[version]
    ours, other = IPAddress(a), IPAddress(b)
    connect((a, b), (b, a))
    connect((b, a), (a, b))
    connect((b, c), (a, b))  # translated: ours only in the reply's source
    connect((c, b), (b, a))  # … and in the reply's destination
    connect((b, c), (c, b))
    assert (table.count(ours), table.count(other)) == (4, 5)
    flush(ours)
    assert (table.count(ours), table.count(other)) == (0, 1)
    flush(ours)
    assert table.count(other) == 1


def test_several_addresses_of_both_families_at_once(table, connect):
    for version in (4, 6):
        a, b, c = CASES[version]
        connect((a, b), (b, a))
        connect((b, c), (c, b))
    table.flush([IPAddress("10.0.0.1"), IPAddress("fd00::3"), IPAddress("10.9.9.9")])
    assert [table.count(IPAddress(text)) for text in ("10.0.0.2", "fd00::2")] == [1, 1]
    table.flush([])


def test_connections_of_both_families_are_listed_and_cut_and_others_namespaces_are_not_seen(table, connect, container):
    with contextlib.closing(Conntrack(container.fd)) as elsewhere:
        assert table.list() == elsewhere.list() == []
        for version in (4, 6):
            a, b, c = (IPAddress(text) for text in CASES[version])
            connect((str(a), str(b)), (str(b), str(a)))
            connect((str(a), str(c)), (str(c), str(a)))
        found = table.list()
        sides = {(each.src, each.dst, each.reply_src, each.reply_dst) for each in found}
        packed = [[IPAddress(text) for text in CASES[version]] for version in (4, 6)]
        assert sides == {(a, other, other, a) for a, b, c in packed for other in (b, c)}
        assert elsewhere.list() == []
    doomed = [each for each in found if each.dst in {IPAddress(CASES[version][1]) for version in (4, 6)}]
    assert table.cut(doomed) == 2
    assert set(table.list()) == set(found) - set(doomed)
    assert table.cut(doomed) == 0
