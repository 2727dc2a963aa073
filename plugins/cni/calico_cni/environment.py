"""What the runtime says in environment variables. Source: cni specification 2.2 and 2.7."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from calico_cni.errors import InvalidEnvironment

_ATTACHMENT = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")
REQUIRED: dict[str, tuple[str, ...]] = {
    "ADD": _ATTACHMENT,
    "CHECK": _ATTACHMENT,
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": (),
    "STATUS": (),
    "VERSION": (),
}
"""Command → variables it cannot do without. ``CNI_PATH`` is needed only to execute another plugin, and is looked at
then."""

_COPIED = {"ADD": ("CNI_ARGS",), "CHECK": ("CNI_ARGS",)}
"""What goes into records and keys beside the required. What was never added need not keep a DEL from its work."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TRUE = frozenset({"1", "TRUE"})
_INTERFACE_REFUSED = re.compile(r"[/:\s]")


class Invocation(NamedTuple):
    """``namespace`` is the path as given, perhaps empty or stale on DEL. ``arguments``: CNI_ARGS by upper-case key.
    ``overrides_namespace``: the caller permits that it is the plugin's own."""

    command: str
    container_id: str = ""
    namespace: str = ""
    interface: str = ""
    arguments: Mapping[str, str] = {}
    overrides_namespace: bool = False


def parse_environment(environment: Mapping[str, str]) -> Invocation:
    """:raises InvalidEnvironment: naming every variable at fault; the missing ones all at once."""
    command = environment.get("CNI_COMMAND", "")
    if command not in REQUIRED:
        raise InvalidEnvironment("CNI_COMMAND", f"{command!r} is not one of {', '.join(REQUIRED)}")
    missing = [variable for variable in REQUIRED[command] if not environment.get(variable)]
    if missing:
        raise InvalidEnvironment(", ".join(missing), f"required for {command} and not set")
    for variable in (*REQUIRED[command], *_COPIED.get(command, ())):
        if not _is_text(environment.get(variable, "")):
            raise InvalidEnvironment(variable, f"{environment[variable]!r} is not UTF-8")
    invocation = Invocation(
        command,
        environment.get("CNI_CONTAINERID", ""),
        environment.get("CNI_NETNS", ""),
        environment.get("CNI_IFNAME", ""),
        parse_arguments(environment.get("CNI_ARGS", "")),
        environment.get("CNI_NETNS_OVERRIDE", "").upper() in _TRUE,
    )
    if "CNI_CONTAINERID" in REQUIRED[command]:
        _check_container_id(invocation.container_id)
        _check_interface(invocation.interface)
    return invocation


def parse_arguments(text: str) -> dict[str, str]:
    """``K=V;K=V``, split at the first ``=``, blanks around both dropped. Pairs that are malformed or no text are
    skipped."""
    pairs = (pair.partition("=") for pair in text.split(";") if _is_text(pair))
    return {key.strip().upper(): value.strip() for key, equals, value in pairs if equals and key.strip()}


def _is_text(value: str) -> bool:
    """Bytes of a variable that are not UTF-8 arrive as lone surrogates, which no JSON can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_container_id(text: str) -> None:
    if not NAME.fullmatch(text):
        reason = f"{text!r} must begin with a letter or digit and hold only letters, digits, '_', '.' and '-'"
        raise InvalidEnvironment("CNI_CONTAINERID", reason)


def _check_interface(text: str) -> None:
    # what the kernel accepts (dev_valid_name in net/core/dev.c)
    if len(text.encode()) > 15 or text in {".", ".."} or _INTERFACE_REFUSED.search(text):
        raise InvalidEnvironment(
            "CNI_IFNAME", f"{text!r} is not an interface name: 1 to 15 bytes, no '/', ':' or blank"
        )
