"""The CNI specification's own examples of every version, through the executables. What another plugin is named for is
ours (``bridge``, ``ovs``, ``macvlan``; ``dhcp``, which needs a server), every other value is the example's. What stands
behind us in a chain is the reference plugin itself, as far as it speaks the version."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calico_cni.results import decode_result, encode_result
from calico_core.lab.host import LabHost
from tests.e2e.cni.containers import REFERENCE, VERSIONS, Container, assert_settles, containers, whole_state

EXAMPLES: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "fixtures" / "cni" / "specification.json").read_text()
)
OURS = {"bridge": "calico", "ovs": "calico", "macvlan": "calico", "dhcp": "calico-ipam"}
MAY_FOLLOW = "1.0.0"  # the newest version that Debian's reference plugins speak
KEYS = {
    "0.1.0": {"cniVersion", "ip4", "ip6", "dns"},
    "0.3.0": {"cniVersion", "interfaces", "ips", "routes", "dns"},
}
needs_reference = pytest.mark.skipif(
    not (REFERENCE / "tuning").exists(), reason="containernetworking-plugins is missing"
)
pytestmark = [pytest.mark.needs_root, needs_reference]


_numbers = itertools.count()


def of_versions(kind: str) -> list[Any]:
    """A case for each version that an example stands in."""
    return [
        pytest.param(version, example, id=f"{version}-{example['section']}-{number}")
        for number, example in enumerate(EXAMPLES[kind])
        for version in example["versions"]
    ]


@pytest.fixture
def container(shared_host: LabHost) -> Iterator[Container]:
    with containers(shared_host, 1, prefix=f"x{next(_numbers)}-") as (only,):
        yield only


@pytest.fixture
def data_directory(tmp_path: Path) -> str:
    """Where ``host-local`` keeps its addresses: not beside those of the machine's own containers."""
    return str(tmp_path / "host-local")


def made_ours(plugin: dict[str, Any], version: str, name: str, data_directory: str) -> dict[str, Any]:
    whole = {"cniVersion": version, "name": name, **plugin, "type": OURS.get(plugin["type"], plugin["type"])}
    if "ipam" in plugin:
        kind = OURS.get(plugin["ipam"]["type"], plugin["ipam"]["type"])
        ipam = {**plugin["ipam"], "type": "calico-ipam" if version > MAY_FOLLOW else kind}
        whole["ipam"] = ipam | ({"dataDir": data_directory} if ipam["type"] == "host-local" else {})
    return whole


def addresses_of(result: dict[str, Any]) -> list[str]:
    return [result["ip4"]["ip"]] if "ip4" in result else [each["address"] for each in result["ips"]]


def assert_result(result: dict[str, Any], configuration: dict[str, Any]) -> None:
    """As the version has it, and with what the configuration says."""
    version = configuration["cniVersion"]
    assert result["cniVersion"] == version
    assert set(result) <= KEYS["0.1.0" if version < "0.3.0" else "0.3.0"]
    (address,) = addresses_of(result)
    if configuration["ipam"]["type"] == "host-local":
        assert address.startswith("10.1.")
    assert result.get("dns", {}) == configuration.get("dns", {})
    routes = result.get("ip4", result).get("routes", [])
    wanted = configuration["ipam"].get("routes") or [{"dst": "0.0.0.0/0"}]
    assert [each["dst"] for each in routes] == [each["dst"] for each in wanted]
    if version >= "0.3.0":
        assert ("version" in result["ips"][0]) == (version < "1.0.0")
        inside = result["interfaces"][result["ips"][0]["interface"]]
        assert (inside["name"], inside["sandbox"][:11]) == ("eth0", "/run/netns/")


@pytest.mark.parametrize(("version", "example"), of_versions("configurations"))
def test_an_example_configuration(
    shared_host: LabHost, container: Container, data_directory: str, version: str, example: dict[str, Any]
) -> None:
    before = whole_state(shared_host)
    written = example["configuration"]
    configuration = made_ours(written, version, written["name"], data_directory)
    result = container.call("ADD", configuration)
    assert_result(result, configuration)
    routes = container.ip("route")
    assert all(f"{each['dst']} via 169.254.1.1" in routes for each in written["ipam"].get("routes", []))
    later = configuration | ({"prevResult": result} if version >= "0.4.0" else {})
    if version >= "0.4.0":
        assert container.call("CHECK", later) is None
    for _ in range(2):
        assert container.call("DEL", later) is None
    assert_settles(shared_host, before)


@pytest.mark.parametrize(("version", "example"), of_versions("lists"))
def test_an_example_list(
    shared_host: LabHost, container: Container, data_directory: str, version: str, example: dict[str, Any]
) -> None:
    """As a runtime executes it: the result before goes along, DEL runs from the end."""
    before = whole_state(shared_host)
    chain = []
    for plugin in example["list"]["plugins"]:
        runtime = example["runtimeConfig"].get(plugin["type"])
        whole = made_ours(plugin, version, example["list"]["name"], data_directory)
        whole.pop("capabilities", None)  # a runtime keeps them to itself
        chain.append(whole | ({"runtimeConfig": runtime} if runtime else {}))
    if version > MAY_FOLLOW:
        chain = chain[:1]
    result = container.call("ADD", chain[0], program="calico")
    assert_result(result, chain[0])
    own = result
    for plugin in chain[1:]:
        result = container.call("ADD", {**plugin, "prevResult": result}, program=plugin["type"])
    assert addresses_of(result) == addresses_of(own)
    show = ["nsenter", f"--net={container.namespace}", "cat", "/proc/sys/net/core/somaxconn"]
    somaxconn = shared_host.run(show).stdout
    assert somaxconn.strip() == "500" or len(chain) == 1
    mac = example["runtimeConfig"].get("tuning", {}).get("mac")
    if mac and len(chain) > 1:
        assert mac in container.ip("link", "show", "eth0")
        assert mac in [each.get("mac") for each in result["interfaces"]]
    if version >= "0.4.0":
        # portmap 1.1.1 misses an IPv6 chain that it never made for a container without IPv6
        for plugin in (each for each in chain if each["type"] != "portmap"):
            assert container.call("CHECK", {**plugin, "prevResult": result}, program=plugin["type"]) is None
    for plugin in reversed(chain):
        again = {**plugin, "prevResult": result} if version >= "0.4.0" else plugin
        assert container.call("DEL", again, program=plugin["type"]) is None
    assert_settles(shared_host, before)


@pytest.mark.parametrize(("version", "example"), of_versions("results"))
def test_an_example_result_is_understood_and_given_on(version: str, example: dict[str, Any]) -> None:
    written = {"cniVersion": version, **example["result"]}
    understood = decode_result(json.dumps(written).encode(), version)
    assert json.loads(encode_result(understood, version)) == written
    for other in VERSIONS:
        there = encode_result(understood, other)
        assert [ip.host for ip in decode_result(there, other).ips] == [ip.host for ip in understood.ips]


@pytest.mark.parametrize("supported", EXAMPLES["version replies"], ids=lambda versions: versions[-1])
def test_version_replies(container: Container, supported: list[str]) -> None:
    reply = container.call("VERSION", {"cniVersion": supported[-1]})
    assert set(reply) == {"cniVersion", "supportedVersions"}
    assert reply["cniVersion"] == supported[-1]
    assert reply["supportedVersions"][: len(supported)] == supported


@pytest.mark.parametrize("version", VERSIONS)
def test_the_example_error(shared_host: LabHost, container: Container, data_directory: str, version: str) -> None:
    """A network that is too small, said by the plugin that finds it so."""
    before = whole_state(shared_host)
    example = EXAMPLES["error"]
    network, _, complaint = example["details"].removeprefix("Network ").rstrip(".").partition(" ")
    ipam = {"type": "host-local", "subnet": network, "dataDir": data_directory}
    if version > MAY_FOLLOW:
        ipam = {"type": "calico-ipam", "ipv4_pools": [network]}
    error = container.refused("ADD", {"cniVersion": version, "name": "dbnet", "type": "calico", "ipam": ipam})
    assert set(error) <= set(example)
    assert error["cniVersion"] == version
    said = f"{error['msg']} {error.get('details', '')}"
    assert complaint in said if version <= MAY_FOLLOW else network in said
    assert whole_state(shared_host) == before


def test_a_version_as_it_was_once_written(container: Container) -> None:
    """``0.1`` is no version that the specification has: the answer says which there are."""
    written = {**EXAMPLES["as written in 0.2.0"], "type": "calico", "ipam": {"type": "calico-ipam"}}
    error = container.refused("ADD", written)
    assert error["code"] in {1, 6}
    assert "0.1" in error["msg"]


def test_gc_and_status(shared_host: LabHost, container: Container, data_directory: str) -> None:
    """As the text of 1.1.0 has them: STATUS without an attachment, GC with the list of those that live."""
    before = whole_state(shared_host)
    configuration = {"cniVersion": "1.1.0", "name": "dbnet", "type": "calico", "ipam": {"type": "calico-ipam"}}
    bare = {"CNI_CONTAINERID": "", "CNI_NETNS": "", "CNI_IFNAME": ""}
    assert container.call("STATUS", configuration, environment=bare) is None
    result = container.call("ADD", configuration)
    valid = json.loads(json.dumps(EXAMPLES["gc"]).replace("CONTAINER", container.id))
    assert container.call("GC", {**configuration, **valid}, environment=bare) is None
    assert container.call("CHECK", {**configuration, "prevResult": result}) is None
    assert container.call("DEL", {**configuration, "prevResult": result}) is None
    assert_settles(shared_host, before)
