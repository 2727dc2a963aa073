from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from calico_cni.errors import IncompatibleVersion
from calico_cni.results import Interface, Ip, Result, Route, decode_result, encode_result, encode_versions
from calico_cni.versions import NEWEST, VERSIONS
from calico_core.errors import InvalidRequest
from calico_core.model.endpoints import Dns

WHOLE = Result(
    interfaces=(
        Interface(name="cali0123456789a", mac="ee:ee:ee:ee:ee:ee"),
        Interface(name="eth0", mac="02:00:5e:10:00:01", mtu=1450, sandbox="/run/netns/c1"),
    ),
    ips=(
        Ip(address="10.65.0.1/32", interface=1),
        Ip(address="10.65.0.2/32", interface=1),
        Ip(address="fd80::1/128", interface=0),
    ),
    routes=(
        Route(dst="0.0.0.0/0", gw="169.254.1.1", mtu=1400),
        Route(dst="10.0.0.0/8"),
        Route(dst="::/0", gw="fe80::1"),
    ),
)


def encoded(result: Result, version: str) -> Any:
    return json.loads(encode_result(result, version))


@pytest.mark.parametrize("version", VERSIONS[:2])
def test_the_first_shape_has_one_address_of_each_family(version: str) -> None:
    assert encoded(WHOLE, version) == {
        "cniVersion": version,
        "ip4": {
            "ip": "10.65.0.1/32",
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "10.0.0.0/8"}],
        },
        "ip6": {"ip": "fd80::1/128", "routes": [{"dst": "::/0", "gw": "fe80::1"}]},
    }


@pytest.mark.parametrize("version", VERSIONS[:2])
def test_the_first_shape_leaves_a_family_out_and_demands_one(version: str) -> None:
    only_v6 = Result(ips=(Ip(address="fd80::1/128", gateway="fe80::1"),))
    assert encoded(only_v6, version) == {"cniVersion": version, "ip6": {"ip": "fd80::1/128", "gateway": "fe80::1"}}
    with pytest.raises(InvalidRequest, match="ips"):
        encode_result(Result(interfaces=WHOLE.interfaces), version)


@pytest.mark.parametrize("version", VERSIONS[2:])
def test_the_second_shape(version: str) -> None:
    shape = encoded(WHOLE, version)
    has_family = version in {"0.3.0", "0.3.1", "0.4.0"}
    assert [ip.get("version") for ip in shape["ips"]] == (["4", "4", "6"] if has_family else [None] * 3)
    assert [ip["interface"] for ip in shape["ips"]] == [1, 1, 0]
    assert ("mtu" in shape["interfaces"][1]) == (version == "1.1.0")
    assert ("mtu" in shape["routes"][0]) == (version == "1.1.0")
    assert "sandbox" not in shape["interfaces"][0]
    assert "dns" not in shape


@pytest.mark.parametrize("version", VERSIONS[2:])
def test_an_index_not_given_is_not_written(version: str) -> None:
    assert "interface" not in encoded(Result(ips=(Ip(address="10.65.0.1/24"),)), version)["ips"][0]


@pytest.mark.parametrize("version", VERSIONS)
def test_dns_is_written_only_when_there_is_some(version: str) -> None:
    plain = Result(ips=(Ip(address="10.65.0.1/32"),))
    named = Result(ips=plain.ips, dns=Dns(nameservers=("10.0.0.53",)))
    assert "dns" not in encoded(plain, version)
    assert encoded(named, version)["dns"] == {"nameservers": ["10.0.0.53"]}


@pytest.mark.parametrize(("first", "second"), list(itertools.product(VERSIONS, repeat=2)))
def test_between_any_two_versions_nothing_is_lost_that_both_know(first: str, second: str) -> None:
    # what the poorer of the two shapes can hold survives the way through the other
    through = decode_result(encode_result(WHOLE, first), first)
    poorer = min(first, second, key=VERSIONS.index)
    back = decode_result(encode_result(through, second), second)
    expected = decode_result(encode_result(WHOLE, poorer), poorer)
    assert encode_result(back, poorer) == encode_result(expected, poorer)


def test_a_result_that_names_no_version_is_of_the_configuration_s() -> None:
    assert decode_result(b'{"ip4": {"ip": "10.1.2.3/24"}}', "0.2.0").ips == (Ip(address="10.1.2.3/24"),)
    assert decode_result(b'{"ips": [{"address": "10.1.2.3/24"}]}', "1.0.0").ips == (Ip(address="10.1.2.3/24"),)


def test_null_is_as_if_the_key_were_not_there() -> None:
    raw = b'{"interfaces": [{"name": "eth0", "mac": null}], "ips": [{"address": "10.1.2.3/24", "gateway": null}]}'
    found = decode_result(raw, "1.0.0")
    assert (found.interfaces, found.ips) == ((Interface(name="eth0"),), (Ip(address="10.1.2.3/24"),))
    with pytest.raises(InvalidRequest, match="interfaces"):
        decode_result(b'{"interfaces": [null]}', "1.0.0")


@pytest.mark.parametrize("raw", [b"[]", b'{"ips": 5}', b"rubbish", b'{"ips": [{"interface": 1}]}'])
def test_what_is_no_result(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="prevResult"):
        decode_result(raw, "1.0.0")


def test_a_result_of_an_unknown_version() -> None:
    with pytest.raises(IncompatibleVersion):
        decode_result(b'{"cniVersion": "3.0.0"}', "1.0.0")


@pytest.mark.parametrize(("asked", "shown"), [("0.4.0", "0.4.0"), ("9.9.9", "9.9.9"), (None, NEWEST), (5, NEWEST)])
def test_versions(asked: object, shown: str) -> None:
    assert json.loads(encode_versions(asked)) == {"cniVersion": shown, "supportedVersions": list(VERSIONS)}
