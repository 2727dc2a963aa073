"""Plugins around ours, on doubles: IPAM delegated to a program, and our policy behind another plugin's interface."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPAddress

import calico_cni.check
from calico_cni import delegate
from calico_core.errors import KernelRefused, NotReady
from calico_core.interfaces.integration import CallReply
from calico_core.model.endpoints import EndpointStatus
from calico_core.model.keys import ReadyKey, WorkloadStatusKey
from tests.doubles.cni import HOST, CniSetup, a_network, error_of, stdout_of
from tests.doubles.kubernetes_api import KubernetesApi

ANSWER = """echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.77.0.9/24", "gateway": "10.77.0.1"}]}'"""


class Program:
    """An IPAM plugin of a few lines of shell. ``heard``: commands in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "odd-ipam"

    def write(self, add: str = ANSWER, rest: str = "", versions: str = "1.0.0") -> None:
        self.path.write_text(
            f"#!/bin/sh\necho $CNI_COMMAND $CNI_ARGS >> {self.folder}/heard\ncat > {self.folder}/stdin\n"
            f"if [ $CNI_COMMAND = ADD ]; then {add}; exit; fi\n"
            f"""if [ $CNI_COMMAND = VERSION ]; then echo '{{"supportedVersions": ["{versions}"]}}'; exit; fi\n"""
            f"{rest}\n"
        )
        self.path.chmod(0o755)

    @property
    def heard(self) -> list[str]:
        """Since the last time."""
        path = self.folder / "heard"
        found = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.partition(" ")[0] for line in found]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    made = Program(tmp_path)
    made.write()
    return made


def call(setup: CniSetup, program: Program, command: str, **changes: Any) -> CallReply:
    return setup.call(command, a_network(**{"ipam": {"type": "odd-ipam"}, **changes}), CNI_PATH=str(program.folder))


def test_its_address_is_ours_without_length_and_gateway(setup: CniSetup, program: Program) -> None:
    result = stdout_of(call(setup, program, "ADD", shade={"of": 1}))
    assert result["ips"] == [{"address": "10.77.0.9/32", "interface": 1}]
    (request,) = setup.workloads.attach_requests
    assert request.addresses == (IPAddress("10.77.0.9"),)
    assert setup.ipam.held == {}
    assert json.loads((program.folder / "stdin").read_text())["shade"] == {"of": 1}
    assert program.heard == ["ADD"]
    assert stdout_of(call(setup, program, "ADD")) == result
    assert program.heard == []  # what stands is not asked for twice
    assert call(setup, program, "CHECK", prevResult=result) == CallReply()
    assert call(setup, program, "DEL") == CallReply()
    assert program.heard == ["CHECK", "DEL"]


def test_a_check_that_looks_again_does_not_run_it_again(
    setup: CniSetup, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is run when nothing else is wrong, and what it says is final."""
    monkeypatch.setattr(calico_cni.check, "PATIENCE_S", 1.0)
    result = stdout_of(call(setup, program, "ADD"))
    (key,) = setup.workloads.attached
    status = WorkloadStatusKey(key.host, key.orchestrator, key.workload, key.endpoint)
    setup.records.put(status, EndpointStatus(status="error", reason="no room"))
    assert "no room" in error_of(call(setup, program, "CHECK", prevResult=result))["msg"]
    assert len(setup.workloads.check_requests) > 1
    assert program.heard == ["ADD"]
    setup.records.delete(status)
    program.write(rest="exit 1")
    assert error_of(call(setup, program, "CHECK", prevResult=result))["code"] == 104
    assert program.heard == ["CHECK"]


def test_arguments_that_are_not_for_it_must_not_hurt(setup: CniSetup, program: Program) -> None:
    setup.call("ADD", a_network(ipam={"type": "odd-ipam"}), CNI_PATH=str(program.folder), CNI_ARGS="K8S_POD_UID=1")
    assert "ADD IgnoreUnknown=1;K8S_POD_UID=1" in (program.folder / "heard").read_text()


@pytest.mark.parametrize("failure", [KernelRefused("add veth", 1), NotReady("draining"), RuntimeError("a defect")])
def test_what_fails_after_it_gives_the_address_back(setup: CniSetup, program: Program, failure: BaseException) -> None:
    setup.workloads.failure = failure
    error_of(call(setup, program, "ADD"))
    assert program.heard == ["ADD", "DEL"]


def test_its_own_failure_is_passed_on(setup: CniSetup, program: Program) -> None:
    program.write("""echo '{"code": 120, "msg": "no luck", "details": "at all"}'; exit 1""")
    error = error_of(call(setup, program, "ADD"))
    assert (error["code"], error["details"], "no luck" in error["msg"]) == (120, "at all", True)
    assert program.heard == ["ADD", "DEL"]
    assert setup.workloads.attach_requests == []


def test_one_that_hangs_is_ended(setup: CniSetup, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(delegate.TIMEOUTS_S, "ADD", 2.0)  # it is heard of by then
    program.write("exec sleep 60")
    started = time.monotonic()
    assert error_of(call(setup, program, "ADD"))["code"] == 104
    assert time.monotonic() - started < 30
    assert program.heard == ["ADD", "DEL"]


@pytest.mark.parametrize(
    ("changes", "dns"),
    [
        ({}, {"nameservers": ["10.77.0.53"], "search": ["near"]}),
        ({"dns": {"domain": "far"}}, {"domain": "far"}),
        ({"runtimeConfig": {"dns": {"servers": ["10.0.0.53"]}}}, {"nameservers": ["10.0.0.53"], "search": ["near"]}),
    ],
)
@pytest.mark.parametrize("version", ["0.2.0", "1.0.0"])
def test_its_word_on_dns_counts_where_nobody_else_has_one(
    setup: CniSetup, program: Program, changes: dict[str, Any], dns: dict[str, Any], version: str
) -> None:
    """As ``host-local`` with ``resolvConf``."""
    said = {"nameservers": ["10.77.0.53"], "search": ["near"]}
    shape = {"ip4": {"ip": "10.77.0.9/24"}} if version < "0.3" else {"ips": [{"address": "10.77.0.9/24"}]}
    program.write(f"echo '{json.dumps({'cniVersion': version, 'dns': said, **shape})}'")
    result = stdout_of(call(setup, program, "ADD", **changes))
    assert result["dns"] == dns
    assert stdout_of(call(setup, program, "ADD", **changes)) == result  # from the record
    assert program.heard == ["ADD"]


@pytest.mark.parametrize("end", ["", "; exit 3"])
def test_what_it_says_on_standard_error_is_passed_on(setup: CniSetup, program: Program, end: str) -> None:
    program.write(f"{ANSWER}; echo a warning >&2{end}", rest="printf %s gone >&2")
    reply = call(setup, program, "ADD")
    if end:
        assert error_of(reply)["code"] == 104
        assert reply.stderr == b"a warning\ngone\n"
    else:
        stdout_of(reply)
        assert reply.stderr == b"a warning\n"
    assert call(setup, program, "DEL") == CallReply(stderr=b"gone\n")
    assert setup.call("DEL") == CallReply()  # of one call only


def test_too_much_on_standard_error_loses_its_beginning(setup: CniSetup, program: Program) -> None:
    program.write(f"{ANSWER}; yes | head -c 100000 >&2; echo the end >&2")
    stderr = call(setup, program, "ADD").stderr
    assert (len(stderr), stderr.endswith(b"y\nthe end\n")) == (8192, True)


def test_one_that_hangs_has_said_something(setup: CniSetup, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(delegate.TIMEOUTS_S, "ADD", 2.0)
    program.write("echo waiting >&2; exec sleep 60")
    assert call(setup, program, "ADD").stderr == b"waiting\n"


@pytest.mark.parametrize("path", ["", "/nowhere", "relative"])
def test_one_that_is_not_there(setup: CniSetup, path: str) -> None:
    error = error_of(setup.call("ADD", a_network(ipam={"type": "odd-ipam"}), CNI_PATH=path))
    assert (error["code"], "odd-ipam" in error["msg"]) == (104, True)
    assert error_of(setup.call("DEL", a_network(ipam={"type": "odd-ipam"}), CNI_PATH=path))["code"] == 104
    assert len(setup.workloads.detach_requests) == 1


def test_directories_and_plain_files_are_passed_over(setup: CniSetup, program: Program, tmp_path: Path) -> None:
    (tmp_path / "a" / "odd-ipam").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "odd-ipam").write_text("not executable")
    search = f"{tmp_path}/a:{tmp_path}/b:{program.folder}"
    stdout_of(setup.call("ADD", a_network(ipam={"type": "odd-ipam"}), CNI_PATH=search))


POD_RANGES = {"type": "odd-ipam", "subnet": "usePodCidr", "ranges": [[{"subnet": "usePodCidrIPv6"}]], "shade": 1}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesApi]:
    server = KubernetesApi(tmp_path)
    server.put("nodes", HOST, spec={"podCIDR": "10.9.1.0/24", "podCIDRs": ["10.9.1.0/24", "fd99:1::/64"]})
    yield server
    server.stop()


def test_the_ranges_that_the_cluster_gave_the_node(setup: CniSetup, program: Program, api: KubernetesApi) -> None:
    kubernetes = {"kubeconfig": api.kubeconfig()}
    result = stdout_of(call(setup, program, "ADD", ipam=POD_RANGES, kubernetes=kubernetes))
    told = json.loads((program.folder / "stdin").read_text())
    assert told["ipam"] == {
        "type": "odd-ipam",
        "subnet": "10.9.1.0/24",
        "ranges": [[{"subnet": "fd99:1::/64"}]],
        "shade": 1,
    }
    assert told["kubernetes"] == kubernetes
    api.stop()
    assert call(setup, program, "CHECK", ipam=POD_RANGES, kubernetes=kubernetes, prevResult=result) == CallReply()
    assert json.loads((program.folder / "stdin").read_text())["ipam"]["subnet"] == "0.0.0.0/0"


def test_another_name_of_the_node(setup: CniSetup, program: Program, api: KubernetesApi) -> None:
    api.put("nodes", "other", spec={"podCIDR": "10.9.2.0/24"})
    kubernetes = {"kubeconfig": api.kubeconfig(), "node_name": "other"}
    ipam = {"type": "odd-ipam", "subnet": "USEPODCIDR"}
    stdout_of(call(setup, program, "ADD", ipam=ipam, kubernetes=kubernetes))
    assert json.loads((program.folder / "stdin").read_text())["ipam"]["subnet"] == "10.9.2.0/24"


@pytest.mark.parametrize(
    ("spec", "says"), [({}, "podCIDRs: none"), ({"podCIDR": "10.9.1.0/24"}, "no IPv6 range"), (None, "404")]
)
def test_a_node_without_the_range(
    setup: CniSetup, program: Program, api: KubernetesApi, spec: dict[str, Any] | None, says: str
) -> None:
    api.put("nodes", "other", spec=spec or {})
    kubernetes = {"kubeconfig": api.kubeconfig(), "node_name": "other" if spec is not None else "nobody"}
    error = error_of(call(setup, program, "ADD", ipam=POD_RANGES, kubernetes=kubernetes))
    assert (error["code"], says in error["msg"]) == (7 if spec is not None else 103, True), error
    assert program.heard == []
    assert setup.workloads.attach_requests == []


def test_releasing_needs_no_pod_range(setup: CniSetup, program: Program) -> None:
    assert error_of(call(setup, program, "ADD", ipam=POD_RANGES))["code"] == 7
    assert call(setup, program, "DEL", ipam=POD_RANGES) == CallReply()
    told = json.loads((program.folder / "stdin").read_text())["ipam"]
    assert (told["subnet"], told["ranges"]) == ("0.0.0.0/0", [[{"subnet": "::/0"}]])


@pytest.mark.parametrize(
    ("listed", "changes", "has_default", "others"),
    [
        ([], {}, True, []),
        (["10.0.0.0/8"], {}, False, ["10.0.0.0/8"]),
        (["10.0.0.0/8", "0.0.0.0/0", "10.0.0.0/8"], {}, True, ["10.0.0.0/8"]),
        (["10.0.0.0/8"], {"include_default_routes": True}, True, ["10.0.0.0/8"]),
        (["10.0.0.0/8", "0.0.0.0/0"], {"default_route": False}, False, ["10.0.0.0/8"]),
        (["fd00::/8", "192.0.2.1/24"], {}, False, ["192.0.2.0/24"]),
    ],
)
def test_routes_of_the_configuration_replace_the_default(
    setup: CniSetup,
    program: Program,
    listed: list[str],
    changes: dict[str, Any],
    has_default: bool,
    others: list[str],
) -> None:
    routes = [{"dst": each, "gw": "10.77.0.1"} for each in listed]
    result = stdout_of(call(setup, program, "ADD", ipam={"type": "odd-ipam", "routes": routes}, **changes))
    (request,) = setup.workloads.attach_requests
    assert request.is_default_route is has_default
    wanted = (["0.0.0.0/0"] if has_default else []) + others
    assert result.get("routes", []) == [{"dst": each, "gw": "169.254.1.1"} for each in wanted]
    assert set(others) <= set(map(str, request.routes))


def test_gc_and_status_go_on_to_those_that_know_them(setup: CniSetup, program: Program) -> None:
    setup.records.put(ReadyKey(), "true")
    changes = {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}
    for command in ("GC", "STATUS"):
        assert call(setup, program, command, **changes) == CallReply()
    assert program.heard == ["VERSION", "VERSION"]
    program.write(versions="1.1.0", rest="""echo '{"code": 50, "msg": "full"}'; exit 1""")
    for command in ("GC", "STATUS"):
        error = error_of(call(setup, program, command, **changes))
        assert (error["code"], "full" in error["msg"]) == (50, True)
    assert program.heard == ["VERSION", "GC", "VERSION", "STATUS"]


# --- behind another plugin -------------------------------------------------------------------------------------


def previous(host_end: str = "cali77", **changes: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": host_end}, {"name": "eth0", "mac": "02:00:5e:00:00:07", "sandbox": "/run/netns/c1"}],
        "ips": [{"address": "10.78.0.2/24", "interface": 1}],
        "shade": "kept",
        **changes,
    }


def test_policy_only(setup: CniSetup) -> None:
    setup.workloads.host_ends["eth0"] = "cali77"
    result = previous()
    assert stdout_of(setup.call("ADD", a_network(prevResult=result, ipam=None))) == result
    (request,) = setup.workloads.attach_requests
    assert (request.interface, request.namespace_fd) == ("cali77", None)
    assert request.addresses == (IPAddress("10.78.0.2"),)
    assert setup.ipam.requests == []
    assert setup.call("CHECK", a_network(prevResult=result, ipam=None)) == CallReply()
    assert setup.call("DEL", a_network(prevResult=result, ipam=None)) == CallReply()
    assert setup.workloads.attached == {}


def test_a_result_of_another_version_is_converted(setup: CniSetup) -> None:
    setup.workloads.host_ends["eth0"] = "cali77"
    result = stdout_of(setup.call("ADD", a_network(cniVersion="0.4.0", prevResult=previous(), ipam=None)))
    assert (result["cniVersion"], result["ips"][0]["version"]) == ("0.4.0", "4")


@pytest.mark.parametrize(
    ("host_ends", "changes", "says"),
    [
        ({}, {}, "no pair"),
        ({"eth0": "cali78"}, {}, "cali78"),
        ({"eth0": "veth1"}, {"prevResult": previous("veth1")}, "prefix"),
    ],
)
def test_what_cannot_be_policed_is_refused(
    setup: CniSetup, host_ends: dict[str, str], changes: dict[str, Any], says: str
) -> None:
    setup.workloads.host_ends.update(host_ends)
    error = error_of(setup.call("ADD", a_network(**{"prevResult": previous(), **changes})))
    assert (error["code"], says in error["msg"]) == (7, True), error
    assert setup.workloads.attach_requests == []


def test_an_unlisted_interface_when_it_is_asked_for(setup: CniSetup) -> None:
    setup.workloads.host_ends["eth0"] = "cali78"
    stdout_of(setup.call("ADD", a_network(prevResult=previous(), mode="policy-only")))
    assert setup.workloads.attach_requests[0].interface == "cali78"


@pytest.mark.parametrize("mode", ["", "policy-only"])
def test_addresses_of_the_plugin_before_us_are_its_own(setup: CniSetup, program: Program, mode: str) -> None:
    """After ``bridge`` with ``calico-ipam``: DEL runs from the end, and that of ``bridge`` may fail."""
    under_bridge = a_network(type="bridge")
    result = stdout_of(setup.call("ADD", under_bridge, program="calico-ipam"))
    setup.workloads.host_ends["eth0"] = "cali77"
    behind = {"prevResult": previous(ips=result["ips"]), "mode": mode}
    stdout_of(call(setup, program, "ADD", **behind))
    assert call(setup, program, "DEL", **behind) == CallReply()
    assert setup.workloads.attached == {}
    assert list(setup.ipam.held) == [IPAddress("10.65.0.1")]
    assert program.heard == [], "what its ADD did not run"
    if mode:  # no record tells any more, and the plugin that an ADD did not run is not run by DEL
        assert call(setup, program, "DEL", **behind) == CallReply()
        assert list(setup.ipam.held) == [IPAddress("10.65.0.1")]
        assert program.heard == []
    assert setup.call("DEL", under_bridge, program="calico-ipam") == CallReply()
    assert setup.ipam.held == {}


BEHIND: list[dict[str, Any]] = [
    {"ipam": None},
    {"ipam": None, "mode": "policy-only"},
    {"ipam": {"type": "odd-ipam"}, "mode": "policy-only"},
]


@pytest.mark.parametrize("changes", BEHIND)
def test_status_and_try_out_show_no_result(setup: CniSetup, program: Program, changes: dict[str, Any]) -> None:
    """Only an ADD has a ``prevResult``. No address is asked for, so there need be no pool."""
    for command in ("STATUS", "TEST"):
        assert call(setup, program, command, cniVersion="1.1.0", **changes) == CallReply()
    gc = {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}
    assert call(setup, program, "GC", **gc, **changes) == CallReply()
    assert program.heard == []
    setup.records.delete(ReadyKey())
    for command in ("STATUS", "TEST"):
        assert error_of(call(setup, program, command, cniVersion="1.1.0", **changes))["code"] == 50


@pytest.mark.parametrize("changes", BEHIND)
def test_an_add_without_the_result_of_the_plugin_before(
    setup: CniSetup, program: Program, changes: dict[str, Any]
) -> None:
    error = error_of(call(setup, program, "ADD", **changes))
    assert (error["code"], error["msg"].partition(":")[0]) == (7, "mode" if "mode" in changes else "ipam.type")
    assert setup.workloads.attach_requests == []
    assert program.heard == []


@pytest.mark.parametrize("command", ["ADD", "STATUS", "TEST"])
def test_a_shared_interface_is_none_of_another_plugin(setup: CniSetup, command: str) -> None:
    result = {"prevResult": previous()} if command == "ADD" else {}
    behind = a_network(cniVersion="1.1.0", ipam=None, interface_mode="single", **result)
    error = error_of(setup.call(command, behind))
    assert (error["code"], error["msg"].partition(":")[0]) == (7, "interface_mode")
