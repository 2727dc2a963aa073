from __future__ import annotations

import json

import pytest

from calico_cni.labels import endpoint_labels, sanitised
from calico_cni.wire import NetworkConfiguration, parse_configuration
from tests.doubles.cni import a_network


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("-my-val", "my-val"),
        ("$my..val", "my.val"),
        ("m$y.val", "m-y.val"),
        ("//my/val/", "my.val"),
        ("a b  c", "a-b-c"),
        ("a-.-b", "a.b"),
        ("a--b", "a--b"),
        ("plain_1", "plain_1"),
        ("$$$", ""),
    ],
)
def test_sanitised(text: str, clean: str) -> None:
    assert sanitised(text) == clean


def labels_of(arguments: object) -> dict[str, str]:
    stdin = json.dumps(a_network(args=arguments)).encode()
    return endpoint_labels(parse_configuration(stdin, NetworkConfiguration).args, {})


def test_the_convention_s_labels_stay_as_they_are() -> None:
    assert labels_of({"cni": {"labels": [{"key": "example.org/role", "value": "web server"}]}}) == {
        "example.org/role": "web server"
    }


def test_mesos_labels_are_made_legal_and_give_way() -> None:
    mesos = [
        {"key": "/app/name", "value": "$web"},
        {"key": "role", "value": "x"},
        {"key": "$", "value": "dropped"},
        {"key": "projectcalico.org/namespace", "value": "blue"},
    ]
    arguments = {
        "cni": {"labels": [{"key": "role", "value": "y"}]},
        "org.apache.mesos": {"network_info": {"labels": {"labels": mesos}}},
    }
    assert labels_of(arguments) == {"app.name": "web", "role": "y", "projectcalico.org/namespace": "blue"}


@pytest.mark.parametrize("arguments", [{}, {"cni": {}}, {"org.apache.mesos": {}}, {"cni": {"labels": None}}])
def test_no_labels(arguments: object) -> None:
    assert labels_of(arguments) == {}


def test_nomad_names_what_it_runs() -> None:
    configuration = parse_configuration(json.dumps(a_network()).encode(), NetworkConfiguration)
    variables = {"NOMAD_JOB_ID": "web/front end", "NOMAD_GROUP_NAME": "cache", "IP": "10.0.0.1", "NOMADIC": "no"}
    labels = endpoint_labels(configuration.args, variables)
    assert labels == {"NOMAD_JOB_ID": "web.front-end", "NOMAD_GROUP_NAME": "cache"}
