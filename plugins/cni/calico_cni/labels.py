"""Endpoint labels from what runtimes attach to a call. Source: cni specification 2.7."""

from __future__ import annotations

import re
from collections.abc import Mapping

from calico_cni.wire import Arguments, Label
from calico_core.model.ids import check_label

NAMESPACE_LABEL = "projectcalico.org/namespace"

_NOMAD = "NOMAD_"
_OTHER = re.compile(r"[^-_.A-Za-z0-9]+")
_DOTTED_RUN = re.compile(r"[.-]*\.[.-]*")


def endpoint_labels(arguments: Arguments, variables: Mapping[str, str]) -> dict[str, str]:
    """Those of the CNI convention as they are; Mesos' and Nomad's, which may hold anything, made legal. The first win.

    ``variables`` are CNI_ARGS by upper-case key; Nomad's (``NOMAD_JOB_ID``, ``NOMAD_GROUP_NAME`` …) keep their names.

    :raises InvalidRequest: ``args.cni.labels`` holds a name that no label can have.
    """
    labels = {sanitised(each.key) if each.key != NAMESPACE_LABEL else each.key: each for each in _mesos(arguments)}
    found = {sanitised(key): sanitised(value) for key, value in variables.items() if key.startswith(_NOMAD)}
    found |= {key: sanitised(each.value) for key, each in labels.items() if key}
    for each in arguments.cni.labels or ():
        found[check_label(each.key, field="args.cni.labels")] = each.value
    return found


def sanitised(text: str) -> str:
    """``/a b/c`` → ``a-b.c``. What is left of a text without a legal character is empty."""
    legal = _OTHER.sub("-", text.replace("/", "."))
    return _DOTTED_RUN.sub(".", legal).strip(".-")


def _mesos(arguments: Arguments) -> tuple[Label, ...]:
    info = arguments.mesos.network_info if arguments.mesos else None
    return (info.labels.labels if info and info.labels else None) or ()
