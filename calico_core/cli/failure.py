"""Errors for people: one line of what happened, one of what to try; and the exit code."""

from __future__ import annotations

import os

from calico_core import errors

# First match wins: subclasses stand before their bases. Source: style of the project, section 6; calicoctl 5.3.
_TABLE: tuple[tuple[type[errors.CalicoError], int, str], ...] = (
    (errors.InvalidInput, 2, ""),
    (errors.Unavailable, 3, "is the datastore running, and is --datastore (or CALICO_DATASTORE) right?"),
    (errors.Conflict, 3, "somebody else changed it at the same moment: run the command again"),
    (errors.Compacted, 3, "run the command again"),
    (errors.Contended, 3, "run the command again"),
    (errors.NotReady, 3, "is calico-node running on this host?"),
    (errors.DaemonDown, 3, "is calico-node running on this host?"),
    (errors.KeyMissing, 4, ""),
    (errors.NotAssigned, 4, ""),
    (errors.KeyExists, 5, ""),
    (errors.AddressInUse, 5, ""),
    (errors.AffinityHeld, 5, ""),
    (errors.StaleRelease, 5, "look at it again with: calicoctl ipam show ADDRESS"),
    (errors.InterfaceTaken, 5, ""),
    (errors.RouteTaken, 5, ""),
    (errors.NoPools, 5, "add a pool with: calicoctl pool add CIDR"),
    (errors.PluginMissing, 1, "install the package that brings it"),
    (errors.CalicoError, 1, ""),
)


class Missing(errors.CalicoError):
    """Something named on the command line does not exist."""

    def __init__(self, what: str, name: str, hint: str = "") -> None:
        super().__init__(f"there is no {what} {name!r}")
        self.hint_text = hint


class Refused(errors.CalicoError):
    """The state of things forbids it."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint_text = hint


def exit_code(error: Exception) -> int:
    if isinstance(error, Missing):
        return 4
    if isinstance(error, Refused):
        return 5
    if isinstance(error, RecursionError | UnicodeError):
        return 2
    return next((code for kind, code, _ in _TABLE if isinstance(error, kind)), 1)


def explain(error: Exception) -> list[str]:
    if not isinstance(error, errors.CalicoError):
        return _explain_other(error)
    hint = getattr(error, "hint_text", "") or next(text for kind, _, text in _TABLE if isinstance(error, kind))
    return [f"calicoctl: {error}", *([f"  {hint}"] if hint else [])]


def _explain_other(error: Exception) -> list[str]:
    """Of what nobody foresaw, as far as it is the machine's or the input's doing."""
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename is not None else ""
        hint = ["  try again with sudo"] if isinstance(error, PermissionError) and os.geteuid() else []
        return [f"calicoctl: {what}{error.strerror or error}", *hint]
    if isinstance(error, RecursionError):
        return ["calicoctl: the input is nested too deeply"]
    if isinstance(error, UnicodeError):
        return [f"calicoctl: there is text that is not UTF-8: {error}"]
    return [f"calicoctl: unexpected {type(error).__name__}: {error}", "  a fault of this program; --debug shows where"]
