"""Certificates of either side, and users that get their credentials elsewhere. Scenario: cni specification 9, 29."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calico_cni.kubeconfig import AccessReader, Source
from calico_core.errors import InvalidRequest
from tests.doubles.certificates import Authority
from tests.doubles.cni import CniSetup, a_network, error_of, stdout_of
from tests.doubles.kubernetes_api import TOKEN, KubernetesApi

ARGUMENTS = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"
COMMENT = "# Autorité de certification: Ünïted\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def api(tmp_path: Path, authority: Authority) -> Iterator[KubernetesApi]:
    server = authority.issue("server", is_server=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_OPTIONAL
    made = KubernetesApi(tmp_path, context)
    made.put("namespaces", "shop")
    made.put("pods", "web-0", "shop")
    yield made
    made.stop()


def network(kubeconfig: str) -> dict[str, Any]:
    return a_network(policy={"type": "k8s"}, kubernetes={"kubeconfig": kubeconfig})


def data(text: bytes) -> str:
    return base64.b64encode(text).decode()


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_certificates_from_files_and_in_place(
    setup: CniSetup, api: KubernetesApi, authority: Authority, tmp_path: Path, encoding: str
) -> None:
    """With comments that are not ASCII."""
    pair = authority.issue("client")
    comment = COMMENT.encode(encoding)
    ours, theirs = tmp_path / "client.pem", tmp_path / "ca.pem"
    ours.write_bytes(comment + pair.certificate.read_bytes())
    theirs.write_bytes(comment + authority.certificate.read_bytes())
    of_files = api.kubeconfig(
        user={"client-certificate": "client.pem", "client-key": str(pair.key)},
        cluster={"certificate-authority": "ca.pem"},
    )
    stdout_of(setup.call("ADD", network(of_files), CNI_ARGS=ARGUMENTS))
    in_place = api.kubeconfig(
        name="in-place",
        user={"client-certificate-data": data(ours.read_bytes()), "client-key-data": data(pair.key.read_bytes())},
        cluster={"certificate-authority-data": data(theirs.read_bytes())},
    )
    stdout_of(setup.call("ADD", network(in_place), container="c2", CNI_ARGS=ARGUMENTS))


def test_a_server_of_another_authority_is_not_asked_again(setup: CniSetup, api: KubernetesApi, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    kubeconfig = api.kubeconfig(cluster={"certificate-authority": str(other.certificate)})
    shape = error_of(setup.call("ADD", network(kubeconfig), CNI_ARGS=ARGUMENTS))
    assert shape["code"] == 103
    assert "certificate is not accepted" in shape["msg"]
    assert api.requests == []
    believing = api.kubeconfig(cluster={"insecure-skip-tls-verify": True})
    stdout_of(setup.call("ADD", network(believing), CNI_ARGS=ARGUMENTS))


@pytest.mark.parametrize(
    ("user", "cluster"),
    [
        ({"token": TOKEN}, {"certificate-authority-data": data(b"no certificate")}),
        ({"client-certificate-data": data(b"none"), "client-key-data": data(b"none")}, {}),
    ],
)
def test_certificates_that_are_none(api: KubernetesApi, user: dict[str, Any], cluster: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="certificates or key cannot be used"):
        AccessReader(Source(kubeconfig=api.kubeconfig(user=user, cluster=cluster))).read()


def test_the_name_that_a_server_s_certificate_must_have(setup: CniSetup, authority: Authority, tmp_path: Path) -> None:
    server = authority.issue("balanced", is_server=True, address="127.0.0.2")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    api = KubernetesApi(tmp_path, context)
    try:
        api.put("namespaces", "shop")
        api.put("pods", "web-0", "shop")
        cluster = {"certificate-authority": str(authority.certificate)}
        assert error_of(setup.call("ADD", network(api.kubeconfig(cluster=cluster)), CNI_ARGS=ARGUMENTS))["code"] == 103
        named = api.kubeconfig(cluster={**cluster, "tls-server-name": "127.0.0.2"})
        stdout_of(setup.call("ADD", network(named), CNI_ARGS=ARGUMENTS))
    finally:
        api.stop()


@pytest.mark.parametrize(
    ("refused", "user", "cluster"),
    [
        ("cluster.proxy-url", {"token": TOKEN}, {"proxy-url": "http://192.0.2.1:3128"}),
        ("user.as", {"token": TOKEN, "as": "bob"}, {}),
        ("user.as-groups", {"token": TOKEN, "as-groups": ["admins"]}, {}),
        ("user.username", {"username": "bob", "password": "hunter2"}, {}),
    ],
)
def test_what_would_ask_another_way_or_as_somebody_else_is_refused(
    api: KubernetesApi, refused: str, user: dict[str, Any], cluster: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match="is not supported") as refusal:
        AccessReader(Source(kubeconfig=api.kubeconfig(user=user, cluster=cluster))).read()
    assert refusal.value.field == refused
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("server", ["https://h:99999/", "https://[::1/", "https://h:port/", "ftp://h/"])
def test_an_address_that_is_none(setup: CniSetup, api: KubernetesApi, server: str) -> None:
    shape = error_of(setup.call("ADD", network(api.kubeconfig(cluster={"server": server})), CNI_ARGS=ARGUMENTS))
    assert (shape["code"], "k8s_api_root" in shape["msg"]) == (7, True)


@pytest.mark.parametrize("token", ["hunter2-\u2603", "hunter2-\u00f6", "hunter2\n2", "hunter2\x01"])
def test_a_token_that_is_none(setup: CniSetup, api: KubernetesApi, token: str) -> None:
    shape = error_of(setup.call("ADD", network(api.kubeconfig(token)), CNI_ARGS=ARGUMENTS))
    assert (shape["code"], "token" in shape["msg"], "hunter2" in shape["msg"]) == (7, True, False)


@pytest.mark.parametrize("key", ["exec", "auth-provider"])
def test_a_user_whose_credentials_a_program_gives(api: KubernetesApi, key: str) -> None:
    other: dict[str, Any] = {key: {"apiVersion": "client.authentication.k8s.io/v1", "command": "aws"}}
    with pytest.raises(InvalidRequest, match=f"user.{key}: is not supported"):
        AccessReader(Source(kubeconfig=api.kubeconfig(user=other))).read()
    assert AccessReader(Source(kubeconfig=api.kubeconfig(user=other | {"token": TOKEN}))).read().token == TOKEN
