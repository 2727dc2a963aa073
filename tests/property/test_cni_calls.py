"""Whatever a runtime sends, it gets what the protocol promises."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from calico_cni.shim import version_in
from calico_cni.versions import VERSIONS
from calico_cni.wire import NetworkConfiguration, read_version
from calico_core.interfaces.integration import Call
from tests.doubles.cni import CniSetup, a_network

KEYS = sorted(NetworkConfiguration.__struct_encode_fields__)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "true", "auto", "k8s", "calico-ipam", "10.65.0.9", "fd80:65::9", "1500", "1.0.0", "a/b"])
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "cni", "ips", "labels", "key", "value", "mac", "dns", "assign_ipv4", "ipv4_pools"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
configurations = st.dictionaries(st.sampled_from(KEYS), values, max_size=4).map(lambda changes: a_network(**changes))
inputs = configurations.map(lambda shape: json.dumps(shape).encode()) | st.binary(max_size=40)
words = st.sampled_from(["", "c1", "eth0", "-", "a b", "/run/netns/x", "IP=10.65.0.7;MAC=x", "ADD", "\udcff"])
environments = st.fixed_dictionaries(
    {"CNI_COMMAND": st.sampled_from(["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "", "add"])},
    optional=dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CALICO_TRACE"), words),
)


@settings(max_examples=300, deadline=None)
@given(stdin=inputs, environment=environments, program=st.sampled_from(["calico", "calico-ipam"]))
def test_every_call_has_a_proper_answer(stdin: bytes, environment: dict[str, str], program: str) -> None:
    whole = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0", **environment}
    descriptor = os.open("/proc/self/ns/uts", os.O_RDONLY)
    try:
        setup = CniSetup(descriptor)
        call = Call(program=program, environment=whole, stdin=stdin, namespace_fd=descriptor)
        reply = setup.integration.handle(call)
    finally:
        os.close(descriptor)
    command = environment["CNI_COMMAND"]
    if reply.status == 0:
        assert bool(reply.stdout) == (command in {"ADD", "VERSION"})
        return
    error: dict[str, Any] = json.loads(reply.stdout)
    assert error["cniVersion"] in VERSIONS
    assert isinstance(error["code"], int)
    assert "internal error" not in error["msg"]
    if command == "ADD":
        assert setup.ipam.held == {}


@given(version=st.sampled_from(VERSIONS), space=st.sampled_from(["", " ", "\n\t"]), name=st.text(max_size=10))
def test_the_shim_finds_the_version_that_a_decoder_finds(version: str, space: str, name: str) -> None:
    text = f'{{{space}"name": {json.dumps(name)}, "cniVersion"{space}:{space}"{version}"{space}}}'.encode()
    assert version_in(text) == read_version(text) == version


@given(stdin=st.binary(max_size=60))
def test_what_the_shim_takes_for_a_version_can_be_printed_into_json(stdin: bytes) -> None:
    found = version_in(b'{"cniVersion":' + stdin)
    assert json.loads(f'"{found}"') == found
