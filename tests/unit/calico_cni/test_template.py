from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from calico_cni.cli import cni
from calico_cni.template import fill_in
from calico_core.errors import InvalidRequest
from tests.unit.calico_cni.conftest import told

# the list of the reference system's manifests
REFERENCE = """{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "calico",
      "log_level": "info",
      "log_file_path": "__LOG_FILE_PATH__",
      "datastore_type": "__DATASTORE_TYPE__",
      "nodename": "__KUBERNETES_NODE_NAME__",
      "mtu": __CNI_MTU__,
      "ipam": {"type": "calico-ipam"},
      "policy": {"type": "k8s"},
      "kubernetes": {"kubeconfig": "__KUBECONFIG_FILEPATH__"}
    },
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}
  ]
}"""


def a_list(**keys: Any) -> str:
    plugin = {"type": "calico", "ipam": {"type": "calico-ipam"}, **keys}
    return json.dumps({"name": "blue", "cniVersion": "1.0.0", "plugins": [plugin]})


def test_the_list_of_the_reference_manifests() -> None:
    environment = {"KUBERNETES_NODE_NAME": "node-1", "CNI_MTU": "1440"}
    shape = json.loads(fill_in(REFERENCE, environment))
    plugin = shape["plugins"][0]
    assert (plugin["nodename"], plugin["mtu"]) == ("node-1", 1440)
    assert plugin["log_file_path"] == "/var/log/calico/cni/cni.log"
    assert plugin["kubernetes"] == {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"}
    assert shape["plugins"][1]["type"] == "portmap"


def test_what_is_not_set_or_empty_has_its_default() -> None:
    template = a_list(log_level="__LOG_LEVEL__", etcd_endpoints="__ETCD_ENDPOINTS__")
    plugin = json.loads(fill_in(template, {"LOG_LEVEL": ""}))["plugins"][0]
    assert (plugin["log_level"], plugin["etcd_endpoints"]) == ("info", "")


def test_a_value_cannot_end_its_text() -> None:
    value = '","type":"other'
    plugin = json.loads(fill_in(a_list(etcd_endpoints="__ETCD_ENDPOINTS__"), {"ETCD_ENDPOINTS": value}))["plugins"][0]
    assert (plugin["type"], plugin["etcd_endpoints"]) == ("calico", value)


@pytest.mark.parametrize(
    ("template", "environment", "said"),
    [
        (REFERENCE, {}, "KUBERNETES_NODE_NAME"),
        (REFERENCE, {"KUBERNETES_NODE_NAME": "a", "CNI_MTU": "many"}, "not JSON once it is filled in"),
        (REFERENCE, {"KUBERNETES_NODE_NAME": "a", "CNI_MTU": "70000"}, r"plugins\[0\].*mtu"),
        (a_list(log_level="__LOGLEVEL__"), {}, "__LOGLEVEL__ is no place-holder"),
        (a_list(policy={"k8s_auth_token": "__SERVICEACCOUNT_TOKEN__"}), {}, "secret"),
        (a_list(ipam={}), {}, r"plugins\[0\].*ipam.type"),
        (a_list(mode="policy-only"), {}, "prevResult"),
        (a_list(device_type="macvlan"), {}, "device_type"),
        (a_list(type="bridge"), {}, "no plugin of type 'calico'"),
        ('{"name": "x", "type": "calico"}', {}, "plugins"),
        ("[]", {}, "plugins"),
    ],
)
def test_what_is_refused(template: str, environment: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        fill_in(template, environment)


def test_a_refusal_tells_no_values() -> None:
    with pytest.raises(InvalidRequest) as caught:
        fill_in(REFERENCE, {"KUBERNETES_NODE_NAME": "a", "CNI_MTU": "hush-hush"})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("is_option", [True, False])
def test_installing_a_template(tmp_path: Path, *, is_option: bool) -> None:
    template = tmp_path / "template"
    template.write_text(REFERENCE)
    environment = {"KUBERNETES_NODE_NAME": "node-1", "CNI_NETWORK_CONFIG_FILE": "" if is_option else str(template)}
    arguments = ["install", "--root", str(tmp_path), "--shim", "python"]
    arguments += ["--template", str(template)] if is_option else []
    target = tmp_path / "etc/cni/net.d/10-calico.conflist"
    for said in ("wrote", "everything is installed already"):
        done = CliRunner().invoke(cni, arguments, env=environment)
        assert (done.exit_code, said in done.output) == (0, True), done.output
    assert json.loads(target.read_text())["plugins"][0]["nodename"] == "node-1"

    template.write_text(REFERENCE.replace("__CNI_MTU__", "__NO_SUCH__"))
    before = target.read_bytes()
    done = CliRunner().invoke(cni, arguments, env=environment)
    code, output = told(done)
    assert (code, "__NO_SUCH__" in output) == (2, True)
    assert target.read_bytes() == before
