"""Network lists written for the reference plugin's installer: place-holders are filled in from the environment, and
what an ADD would refuse is refused before anything is installed. Source: cni specification 7.2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from calico_cni.programs import NETWORK_PROGRAM
from calico_cni.supported import check_add, check_supported
from calico_cni.wire import NetworkConfiguration, parse_configuration
from calico_core.errors import InvalidRequest

FIELD = "template"
_PLACE_HOLDER = re.compile(r"__([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*)__")
_TOKEN = "SERVICEACCOUNT_TOKEN"

# place-holder → variable that fills it in, and what stands there without (None: it must be set)
_VALUES: dict[str, tuple[str, str | None]] = {
    "CNI_MTU": ("CNI_MTU", "0"),
    "DATASTORE_TYPE": ("DATASTORE_TYPE", "kubernetes"),
    "ETCD_CA_CERT_FILE": ("CNI_CONF_ETCD_CA", ""),
    "ETCD_CERT_FILE": ("CNI_CONF_ETCD_CERT", ""),
    "ETCD_DISCOVERY_SRV": ("ETCD_DISCOVERY_SRV", ""),
    "ETCD_ENDPOINTS": ("ETCD_ENDPOINTS", ""),
    "ETCD_KEY_FILE": ("CNI_CONF_ETCD_KEY", ""),
    "KUBECONFIG_FILENAME": ("KUBECONFIG_FILENAME", "calico-kubeconfig"),
    "KUBECONFIG_FILEPATH": ("KUBECONFIG_FILEPATH", "/etc/cni/net.d/calico-kubeconfig"),
    "KUBERNETES_NODE_NAME": ("KUBERNETES_NODE_NAME", None),
    "KUBERNETES_SERVICE_HOST": ("KUBERNETES_SERVICE_HOST", None),
    "KUBERNETES_SERVICE_PORT": ("KUBERNETES_SERVICE_PORT", None),
    "LOG_FILE_MAX_AGE": ("LOG_FILE_MAX_AGE", "30"),
    "LOG_FILE_MAX_COUNT": ("LOG_FILE_MAX_COUNT", "10"),
    "LOG_FILE_MAX_SIZE": ("LOG_FILE_MAX_SIZE", "100"),
    "LOG_FILE_PATH": ("LOG_FILE_PATH", "/var/log/calico/cni/cni.log"),
    "LOG_LEVEL": ("LOG_LEVEL", "info"),
    "REQUIRE_MTU_FILE": ("CNI_REQUIRE_MTU_FILE", "false"),
}


def fill_in(template: str, environment: Mapping[str, str]) -> bytes:
    """The network list. :raises InvalidRequest: it names what is wrong, never the text with the values in it."""
    filled = _PLACE_HOLDER.sub(lambda found: _value(found[1], environment), template)
    try:
        shape = json.loads(filled)
    except ValueError as error:
        raise InvalidRequest(FIELD, f"is not JSON once it is filled in: {_place(error)}") from error
    plugins = shape.get("plugins") if isinstance(shape, dict) else None
    if not isinstance(plugins, list) or not all(isinstance(plugin, dict) for plugin in plugins):
        raise InvalidRequest(FIELD, "is not a network list: it needs 'plugins', a list of objects")
    if not any(plugin.get("type") == NETWORK_PROGRAM for plugin in plugins):
        raise InvalidRequest(FIELD, f"has no plugin of type {NETWORK_PROGRAM!r}")
    for place, plugin in enumerate(plugins):
        if plugin.get("type") == NETWORK_PROGRAM:
            _check(place, plugin, shape)
    return (filled.rstrip() + "\n").encode()


def _value(name: str, environment: Mapping[str, str]) -> str:
    if name == _TOKEN:
        raise InvalidRequest(FIELD, f"__{name}__ would put a secret into the list: name a file, kubernetes.kubeconfig")
    if name not in _VALUES:
        known = ", ".join(f"__{known}__" for known in _VALUES)
        raise InvalidRequest(FIELD, f"__{name}__ is no place-holder; there are {known}")
    variable, default = _VALUES[name]
    value = environment.get(variable) or default
    if value is None:
        raise InvalidRequest(FIELD, f"__{name}__ needs the environment variable {variable}")
    return json.dumps(value)[1:-1]  # it stands within quotes, or is a number


def _check(place: int, plugin: dict[str, Any], shape: dict[str, Any]) -> None:
    """As a runtime would hand it over. Behind another plugin there is a ``prevResult``."""
    handed = {**plugin, "name": shape.get("name", ""), "cniVersion": shape.get("cniVersion", "")}
    if place:
        handed["prevResult"] = {}
    try:
        configuration = parse_configuration(json.dumps(handed).encode(), NetworkConfiguration)
        check_add(configuration)
        check_supported(configuration, host=(configuration.nodename or configuration.hostname).strip())
    except InvalidRequest as error:
        raise InvalidRequest(FIELD, f"plugins[{place}]: {error}") from error


def _place(error: ValueError) -> str:
    return f"{error.msg} in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "bad text"
