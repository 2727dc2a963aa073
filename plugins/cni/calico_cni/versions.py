"""Versions of the CNI specification and what each of them knows. Source: cni specification 2.1."""

from __future__ import annotations

import re

from calico_cni.errors import IncompatibleVersion, Undecodable
from calico_core.errors import InvalidRequest

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]

_SHAPE = re.compile(r"\d{1,4}\.\d{1,4}\.\d{1,4}")
_COMMANDS_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


def parse_version(text: object, *, field: str = "cniVersion") -> str:
    """A supported version; none given means 0.1.0.

    :raises Undecodable: it is no version at all.
    :raises IncompatibleVersion: it is one that we do not speak.
    """
    if text is None or text == "":
        return VERSIONS[0]
    if not isinstance(text, str) or not _SHAPE.fullmatch(text):
        raise Undecodable(field, f"{text!r} is not a version such as {NEWEST}")
    if text not in VERSIONS:
        raise IncompatibleVersion(text, VERSIONS)
    return text


def known_version(text: object) -> str:
    """As :func:`parse_version`, for answers to requests that may be wrong: the newest where it would refuse."""
    try:
        return parse_version(text)
    except InvalidRequest:
        return NEWEST


def is_at_least(version: str, least: str) -> bool:
    return VERSIONS.index(version) >= VERSIONS.index(least)


def check_command(version: str, command: str) -> None:
    """:raises IncompatibleVersion: the command came with a later version than the configuration asks for."""
    since = _COMMANDS_SINCE.get(command, VERSIONS[0])
    if not is_at_least(version, since):
        later = tuple(each for each in VERSIONS if is_at_least(each, since))
        raise IncompatibleVersion(version, later, what=command)
