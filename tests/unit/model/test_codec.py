"""Bad records name the key, the field and what would be right; good ones survive a round trip."""

from __future__ import annotations

import json

import pytest

from calico_core.errors import InvalidRecord, InvalidRequest
from calico_core.model import codec, keys
from calico_core.model.addresses import parse_address, parse_mac, parse_network
from calico_core.model.blocks import Block

WORKLOAD = keys.WorkloadEndpointKey("h1", "cni", "c1", "e1")
HOST_ENDPOINT = keys.HostEndpointKey("h1", "eth0")
RULES = keys.ProfileRulesKey("web")
POOL = keys.PoolKey(parse_network("10.0.0.0/16"))
POLICY = keys.PolicyKey("default", "p")
BLOCK = keys.BlockKey(parse_network("10.0.0.0/30"))
CONFIG = keys.IpamConfigKey()
PEER = keys.BgpGlobalPeerKey(parse_address("192.0.2.1"))

MALFORMED = [
    # key, value, field that the message names, word that says what would be right
    (WORKLOAD, "", "", "JSON"),
    (WORKLOAD, "{", "", "JSON"),
    (WORKLOAD, "[]", "$", "object"),
    (WORKLOAD, '{"name":"cali1"}', "$", "state"),
    (WORKLOAD, '{"state":"on","name":"cali1"}', "$.state", "'on'"),
    (WORKLOAD, '{"state":"active"}', "$", "name"),
    (WORKLOAD, '{"state":"active","name":"cali0123456789abc"}', "$", "1 to 15"),
    (WORKLOAD, '{"state":"active","name":"ca li"}', "$", "interface name"),
    (WORKLOAD, '{"state":"active","name":"cali1","mac":"12:34"}', "$.mac", "MAC address"),
    (WORKLOAD, '{"state":"active","name":"cali1","ipv4_nets":["10.0.0.0/24"]}', "$", "/32"),
    (WORKLOAD, '{"state":"active","name":"cali1","ipv4_nets":["10.0.0.256"]}', "$.ipv4_nets[0]", "IP address"),
    (WORKLOAD, '{"state":"active","name":"cali1","ipv4_gateway":[1]}', "$.ipv4_gateway", "IP address"),
    (WORKLOAD, '{"state":"active","name":"cali1","ipv4_gateway":{}}', "$.ipv4_gateway", "IP address"),
    (WORKLOAD, '{"state":"active","name":"cali1","ipv4_gateway":5}', "$.ipv4_gateway", "IP address"),
    (WORKLOAD, '{"state":"active","name":"cali1","ipv4_gateway":true}', "$.ipv4_gateway", "IP address"),
    (HOST_ENDPOINT, '{"expected_ipv4_addrs":[[1]]}', "$.expected_ipv4_addrs[0]", "IP address"),
    (RULES, '{"a":' * 100_000, "", "nested too deeply"),
    (RULES, '{"a":null,"b":' + "[" * 100_000, "", "nested too deeply"),
    (BLOCK, '{"deleted":null,"b":' + '{"a":' * 100_000, "", "nested too deeply"),
    (WORKLOAD, '{"expected_ipv4_addrs":' + '{"a":' * 100_000, "", "nested too deeply"),
    (WORKLOAD, '{"state":"active","name":"cali1","ipv4_nets":["fd00::1"]}', "$", "IPv4"),
    (WORKLOAD, '{"state":"active","name":"cali1","ipv6_nets":["10.0.0.1"]}', "$", "IPv6"),
    (WORKLOAD, '{"state":"active","name":"cali1","labels":{"a b":"c"}}', "$", "letters"),
    (WORKLOAD, '{"state":"active","name":"cali1","labels":{"a":1}}', "$.labels[...]", "str"),
    (WORKLOAD, '{"state":"active","name":"cali1","profile_ids":["a/b"]}', "$", "letters"),
    (
        WORKLOAD,
        '{"state":"active","name":"cali1","ipv4_nat":[{"int_ip":"10.0.0.1","ext_ip":"192.0.2.1"}]}',
        "$",
        "not an address of the endpoint",
    ),
    (WORKLOAD, '{"state":"active","name":"cali1","ipv4_gateway":"fd00::1"}', "$", "ipv4_gateway"),
    (WORKLOAD, '{"state":"active","name":"cali1","expected_ipv4_addrs":[]}', "$.expected_ipv4_addrs", "host endpoints"),
    (RULES, '{"inbound_rules":[{"!src_selector":"a ="}]}', "$.inbound_rules[0]", "!src_selector"),
    (RULES, '{"inbound_rules":[{"ip_version":4,"!src_net":"fd00::/8"}]}', "$.inbound_rules[0]", "!src_net"),
    (keys.ProfileLabelsKey("p"), '{"a\\u0000b":"x"}', "$", "matching"),
    (keys.ProfileTagsKey("p"), '["a b"]', "$[0]", "matching"),
    (keys.NetworkSetKey("s"), '{"labels":{"\\u0000tag/t":""}}', "$.labels", "matching"),
    (HOST_ENDPOINT, "{}", "$", "interface name or at least one"),
    (HOST_ENDPOINT, '{"name":"eth0","state":"active"}', "$", "workload endpoints"),
    (HOST_ENDPOINT, '{"name":"eth0","expected_ipv4_addrs":["fd00::1"]}', "$", "IPv4"),
    (HOST_ENDPOINT, '{"name":"eth0","ipv4_nat":[]}', "$", "workload endpoints"),
    (
        WORKLOAD,
        '{"state":"active","name":"cali1","allow_spoofed_source_ips":["10.0.0.0/8","ten"]}',
        "$.allow_spoofed_source_ips[1]",
        "'ten' is not an IP address",
    ),
    (HOST_ENDPOINT, '{"name":"eth*"}', "$", "interface name"),
    (HOST_ENDPOINT, '{"name":"eth+"}', "$", "interface name"),
    (HOST_ENDPOINT, '{"name":"eth0:1"}', "$", "interface name"),
    (HOST_ENDPOINT, '{"name":".."}', "$", "interface name"),
    (HOST_ENDPOINT, '{"name":"a\\" drop"}', "$", "interface name"),
    (HOST_ENDPOINT, '{"name":"eth0\\n"}', "$", "interface name"),
    (HOST_ENDPOINT, '{"name":"eth0","labels":{"a b":""}}', "$", "label name"),
    (HOST_ENDPOINT, '{"name":"*","ports":[{"name":"80","protocol":"tcp","port":80}]}', "$.ports[0]", "a letter"),
    (HOST_ENDPOINT, '{"name":"*","ports":[{"name":"a","protocol":"icmp","port":80}]}', "$.ports[0]", "tcp, udp"),
    (HOST_ENDPOINT, '{"name":"*","ports":[{"name":"a","protocol":6,"port":0}]}', "$.ports[0]", "1 and 65535"),
    (RULES, '{"inbound_rules":[{"acton":"allow"}]}', "$.inbound_rules[0]", "acton"),
    (RULES, '{"inbound_rules":[{"action":"accept"}]}', "$.inbound_rules[0].action", "'accept'"),
    (RULES, '{"inbound_rules":[{"protocol":"ftp"}]}', "$.inbound_rules[0]", "tcp"),
    (RULES, '{"inbound_rules":[{"protocol":0}]}', "$.inbound_rules[0]", "1 to 255"),
    (RULES, '{"inbound_rules":[{"protocol":"256"}]}', "$.inbound_rules[0]", "1 to 255"),
    (RULES, '{"inbound_rules":[{"dst_ports":[80]}]}', "$.inbound_rules[0]", "protocol of tcp"),
    (RULES, '{"inbound_rules":[{"protocol":"icmp","dst_ports":[80]}]}', "$.inbound_rules[0]", "protocol of tcp"),
    (RULES, '{"inbound_rules":[{"protocol":"tcp","dst_ports":[65536]}]}', "$.inbound_rules[0]", "65535"),
    (RULES, '{"inbound_rules":[{"protocol":"tcp","dst_ports":["9:8"]}]}', "$.inbound_rules[0]", "lower"),
    (RULES, '{"inbound_rules":[{"protocol":"tcp","dst_ports":["8000-8080"]}]}', "$.inbound_rules[0]", "8000:8080"),
    (RULES, '{"inbound_rules":[{"protocol":"tcp","dst_ports":["a b"]}]}', "$.inbound_rules[0]", "name of a port"),
    (RULES, '{"inbound_rules":[{"dst_ports":["http"]}]}', "$.inbound_rules[0]", "protocol of tcp"),
    (RULES, '{"inbound_rules":[{"src_net":"10.0.0.0/33"}]}', "$.inbound_rules[0].src_net", "0 to 32"),
    (RULES, '{"inbound_rules":[{"!src_net":"10"}]}', "$.inbound_rules[0].!src_net", "IP address"),
    (RULES, '{"inbound_rules":[{"ip_version":5}]}', "$.inbound_rules[0].ip_version", "5"),
    (RULES, '{"inbound_rules":[{"ip_version":6,"protocol":"icmp"}]}', "$.inbound_rules[0]", "icmpv6"),
    (RULES, '{"inbound_rules":[{"ip_version":4,"src_net":"fd00::/8"}]}', "$.inbound_rules[0]", "IPv4"),
    (RULES, '{"inbound_rules":[{"protocol":"icmp","icmp_type":255}]}', "$.inbound_rules[0].icmp_type", "254"),
    (RULES, '{"inbound_rules":[{"protocol":"icmp","icmp_code":0}]}', "$.inbound_rules[0]", "icmp_type"),
    (RULES, '{"inbound_rules":[{"icmp_type":8}]}', "$.inbound_rules[0]", "protocol icmp"),
    (RULES, '{"inbound_rules":[{"src_tag":"a b"}]}', "$.inbound_rules[0]", "letters"),
    (RULES, '{"outbound_rules":[{"dst_selector":"a = b"}]}', "$.outbound_rules[0]", "character 2"),
    (POOL, '{"cidr":"10.1.0.0/16"}', "$.cidr", "10.0.0.0/16"),
    (POOL, '{"cidr":"10.0.0.0/27"}', "$", "smaller than one block"),
    (POOL, '{"cidr":"10.0.0.0/16","blockSize":19}', "$", "20 to 32"),
    (POOL, '{"cidr":"10.0.0.0/16","masquerade":"yes"}', "$.masquerade", "bool"),
    (POOL, '{"cidr":"10.0.0.0/16","ipip":"tunl0","vxlan_mode":"always"}', "$", "not by both"),
    (POLICY, '{"order":1}', "$", "selector"),
    (POLICY, '{"selector":"a =="}', "$", "quoted string"),
    (POLICY, '{"selector":"","order":"first"}', "$.order", "first"),
    (POLICY, '{"selector":"","types":["both"]}', "$.types[0]", "both"),
    (BLOCK, '{"cidr":"10.0.0.0/30","allocations":[null]}', "$", "4 entries"),
    (BLOCK, '{"cidr":"10.0.0.0/30","allocations":[0,null,null,null]}', "$", "attributes"),
    (
        BLOCK,
        '{"cidr":"10.0.0.0/30","allocations":[null,null,null,null],"unallocated":[0,1,2,2]}',
        "$",
        "free ordinals",
    ),
    (CONFIG, '{"strict_affinity":false,"auto_allocate_blocks":false}', "$", "strict_affinity"),
    (CONFIG, '{"ipCooldownSeconds":1201}', "$", "1200"),
    (PEER, '{"ip":"192.0.2.1","as_num":"0"}', "$", "4294967295"),
    (PEER, '{"ip":"192.0.2.1","as_num":64512}', "$.as_num", "str"),
]


@pytest.mark.parametrize(("key", "value", "field", "right"), MALFORMED)
def test_malformed_record(key: keys.Key, value: str, field: str, right: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        codec.decode(key, value.encode())
    assert caught.value.key == key.path
    assert caught.value.path == field
    assert right in str(caught.value)


GOOD = [
    (
        WORKLOAD,
        (
            '{"state":"active","name":"cali1","mac":"ee:ee:ee:ee:ee:ee","profile_ids":["web"],'
            '"ipv4_nets":["10.0.0.1/32"],"labels":{"role":"web"}}'
        ),
    ),
    (WORKLOAD, '{"state":"active","name":"cali1","allow_spoofed_source_ips":["198.51.100.0/24","2001:db8::/64"]}'),
    (HOST_ENDPOINT, '{"name":"eth0.100"}'),
    (HOST_ENDPOINT, '{"name":"br-@~=#"}'),
    (RULES, '{"inbound_rules":[{"protocol":"tcp","dst_ports":[80,"90:99"]}],"outbound_rules":[],"id":"web"}'),
    (POOL, '{"cidr":"10.0.0.0/16","masquerade":true}'),
    (PEER, '{"ip":"192.0.2.1","as_num":"64512"}'),
]


@pytest.mark.parametrize(("key", "value"), GOOD)
def test_round_trip_keeps_the_bytes(key: keys.Key, value: str) -> None:
    assert codec.encode(codec.decode(key, value.encode())).decode() == value


def test_old_forms_are_read() -> None:
    endpoint = codec.decode(WORKLOAD, b'{"state":"active","name":"cali1","profile_id":"web","future":1}')
    assert endpoint.profile_ids == ("web",)
    assert b'profile_id"' not in codec.encode(endpoint)
    assert codec.decode(keys.AffinityKey("h1", parse_network("10.0.0.0/26")), b"").state == "confirmed"
    block: Block = codec.decode(
        BLOCK,
        b'{"cidr":"10.0.0.0/30","hostAffinity":"h1","allocations":[0,null,null,null],'
        b'"attributes":[{"handle_id":null,"secondary":null}]}',
    )
    assert (block.owner, block.unallocated) == ("h1", (1, 2, 3))


def test_other_protocols_name_the_field() -> None:
    with pytest.raises(InvalidRequest) as caught:
        codec.decode_json(Block, b'{"cidr":7}')
    assert caught.value.field == "cidr"


def test_addresses_are_strict() -> None:
    for text in ("10", "1.2.3", "010.1.1.1", "", "fe80::1%eth0", "1.2.3.4/33", "1.2.3.4/-1", "1.2.3.4/"):
        with pytest.raises(InvalidRequest):
            parse_network(text)
    for text in ("", "1", "00:11:22:33:44", "00:11:22:33:44:5g", "00-11:22:33:44:55:66"):
        with pytest.raises(InvalidRequest):
            parse_mac(text)
    assert str(parse_network("10.1.2.3/8")) == "10.0.0.0/8"
    assert str(parse_mac("EE-EE-EE-EE-EE-EE")) == "ee:ee:ee:ee:ee:ee"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (RULES, '{"inbound_rules":[{"action":null,"src_tag":"t","dst_ports":null,"what":null}],"outbound_rules":null}'),
        (POLICY, '{"selector":"a == \'null\'","order":null,"inbound_rules":null,"types":null}'),
        (WORKLOAD, '{"state":"active","name":"cali1","mac":null,"labels":null,"ipv4_nets":null,"ports":null}'),
        (HOST_ENDPOINT, '{"name":"eth0","state":null,"expected_ipv4_addrs":null}'),
        (keys.NetworkSetKey("s"), '{"nets":null}'),
        (POOL, '{"cidr":"10.0.0.0/16","ipip":null,"blockSize":null,"nodeSelector":null,"allowed_uses":null}'),
    ],
)
def test_a_null_field_equals_an_absent_one(key: keys.Key, text: str) -> None:
    without = {name: value for name, value in json.loads(text).items() if value is not None}
    for rule in without.get("inbound_rules", ()):
        for field in [name for name, value in rule.items() if value is None]:
            del rule[field]
    assert codec.decode(key, text.encode()) == codec.decode(key, json.dumps(without).encode())
