"""The one hierarchy of errors. A class carries fields; its text is made from them.

::

    CalicoError
    ├── InvalidInput
    │   ├── InvalidRecord(key, path)          a datastore value that does not decode
    │   ├── InvalidRequest(field)             what a caller asked for
    │   ├── InvalidSettings(name, origin)     a setting, with where it came from
    │   └── InvalidSelector(text, position)   a label expression
    ├── DatastoreError
    │   ├── Unavailable*      cannot be reached, or too slow; ``maybe_applied`` says a write may have landed
    │   ├── KeyMissing        the key is not there
    │   ├── KeyExists         the key is there already
    │   ├── Conflict*         the revision moved on
    │   └── Compacted*        the history asked for is gone
    ├── IpamError
    │   ├── NoPools           no pool may be used
    │   ├── PoolExhausted     no address is left where we may look
    │   ├── AddressInUse      another handle holds the address
    │   ├── OutsidePools      the address lies in no enabled pool
    │   ├── NotAssigned       the address is free
    │   ├── AffinityHeld      the block belongs to another host
    │   ├── StaleRelease      handle or sequence number is not the recorded one
    │   └── Contended*        too many lost races within the time allowed
    ├── DataplaneError
    │   ├── ToolFailed(argv, code, stderr)
    │   ├── KernelRefused(operation, errno)
    │   ├── NamespaceGone
    │   ├── InterfaceTaken
    │   └── RouteTaken
    ├── RoutingError
    │   ├── ConfigRejected(line)
    │   └── DaemonDown*
    ├── PluginError
    │   ├── PluginMissing
    │   ├── PluginIncompatible(wants, have)
    │   └── PluginBroken(cause)
    └── NotReady*             the node cannot serve this yet                          * retryable
        └── StoreNotReady*
"""

from __future__ import annotations

import os
from typing import Any, ClassVar


class CalicoError(Exception):
    """The root. ``retryable`` says whether the same call may succeed later without a change by the caller."""

    retryable: ClassVar[bool] = False
    hint: ClassVar[str] = ""


# --- input ---------------------------------------------------------------------------------------


class InvalidInput(CalicoError):
    """Something given from outside is not acceptable. Nothing was changed."""


class InvalidRecord(InvalidInput):
    """The value at a datastore key does not decode. ``path`` is the field inside it, as ``$.a[0].b``."""

    def __init__(self, key: str, path: str, reason: str) -> None:
        super().__init__(f"record {key}: {path}: {reason}" if path else f"record {key}: {reason}")
        self.key, self.path, self.reason = key, path, reason


class InvalidRequest(InvalidInput):
    """A request field is missing or wrong. ``reason`` says what would be right."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


class InvalidSettings(InvalidInput):
    """A setting has an unusable value. ``origin`` is the source: environment, file, datastore host …"""

    def __init__(self, name: str, origin: str, reason: str) -> None:
        super().__init__(f"setting {name} (from {origin}): {reason}")
        self.name, self.origin, self.reason = name, origin, reason


class InvalidSelector(InvalidInput):
    """A label expression does not parse. ``position`` counts characters from 0."""

    def __init__(self, text: str, position: int, reason: str) -> None:
        super().__init__(f"selector {text!r}: at character {position}: {reason}")
        self.text, self.position, self.reason = text, position, reason


# --- datastore -----------------------------------------------------------------------------------


class DatastoreError(CalicoError):
    """A datastore call did not do what was asked."""


class Unavailable(DatastoreError):
    """The store cannot be reached or did not answer in time.

    ``maybe_applied`` is true when a write may have landed: re-read before repeating a create or a swap.
    """

    retryable = True

    def __init__(self, endpoint: str, cause: str, *, maybe_applied: bool = False) -> None:
        super().__init__(f"datastore {endpoint}: {cause}")
        self.endpoint, self.cause, self.maybe_applied = endpoint, cause, maybe_applied


class KeyMissing(DatastoreError):
    """The key does not exist."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} does not exist")
        self.key = key


class KeyExists(DatastoreError):
    """A create met an existing key. ``current`` is its entry (an ``interfaces.datastore.Entry``)."""

    def __init__(self, key: str, current: Any) -> None:
        super().__init__(f"{key} exists already")
        self.key, self.current = key, current


class Conflict(DatastoreError):
    """The caller's view is stale; nothing happened. ``current`` is the entry now, or None if it is gone."""

    retryable = True

    def __init__(self, key: str, current: Any) -> None:
        super().__init__(f"{key} was changed by another writer")
        self.key, self.current = key, current


class Compacted(DatastoreError):
    """The history after ``revision`` is gone; take a new snapshot. ``oldest`` is what is still there."""

    retryable = True

    def __init__(self, revision: int, oldest: int) -> None:
        super().__init__(f"history after revision {revision} is compacted, the oldest kept is {oldest}")
        self.revision, self.oldest = revision, oldest


# --- addresses -----------------------------------------------------------------------------------


class IpamError(CalicoError):
    """An address could not be assigned or released as asked. Nothing was changed."""


class NoPools(IpamError):
    """No pool of the family is enabled, or none of those requested."""

    def __init__(self, version: int, requested: tuple[str, ...] = (), available: tuple[str, ...] = ()) -> None:
        what = f"none of the requested pools ({', '.join(requested)})" if requested else "no pool"
        known = f"; enabled pools: {', '.join(available)}" if available else "; no pool is enabled"
        super().__init__(f"IPv{version}: {what} can be used{known}")
        self.version, self.requested, self.available = version, requested, available


class PoolExhausted(IpamError):
    """Fewer addresses are free than were asked for. ``reason`` says which limit was met."""

    def __init__(self, version: int, wanted: int, found: int, reason: str) -> None:
        super().__init__(f"IPv{version}: asked for {wanted} addresses, found {found}: {reason}")
        self.version, self.wanted, self.found, self.reason = version, wanted, found, reason


class AddressInUse(IpamError):
    """The address is held by another handle (``holder``, or None when it was assigned without one)."""

    def __init__(self, address: str, holder: str | None) -> None:
        super().__init__(f"address {address} is already in use" + (f" by {holder}" if holder else ""))
        self.address, self.holder = address, holder


class OutsidePools(IpamError):
    """The address lies in no enabled pool."""

    def __init__(self, address: str, available: tuple[str, ...] = ()) -> None:
        known = ", ".join(available) or "none"
        super().__init__(f"address {address} is in no enabled pool; enabled pools: {known}")
        self.address, self.available = address, available


class NotAssigned(IpamError):
    """The address (or everything under a handle) is free."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not assigned")
        self.what = what


class AffinityHeld(IpamError):
    """The block belongs to another host."""

    def __init__(self, block: str, owner: str) -> None:
        super().__init__(f"block {block} belongs to {owner}")
        self.block, self.owner = block, owner


class StaleRelease(IpamError):
    """The address was reassigned since the caller looked; it is left alone."""

    def __init__(self, address: str, expected: str, found: str) -> None:
        super().__init__(f"address {address} is no longer held by {expected} but by {found}")
        self.address, self.expected, self.found = address, expected, found


class Contended(IpamError):
    """Every attempt lost a race until the deadline. Nothing is assigned."""

    retryable = True

    def __init__(self, what: str, attempts: int) -> None:
        super().__init__(f"{what}: lost {attempts} races, try again")
        self.what, self.attempts = what, attempts


# --- kernel --------------------------------------------------------------------------------------


class DataplaneError(CalicoError):
    """The kernel or a tool that programs it refused."""


class ToolFailed(DataplaneError):
    """A program ended with a non-zero status."""

    def __init__(self, argv: tuple[str, ...], code: int, stderr: str) -> None:
        super().__init__(f"{' '.join(argv)} ended with {code}: {stderr.strip()}")
        self.argv, self.code, self.stderr = argv, code, stderr


class KernelRefused(DataplaneError):
    """A system call or a netlink request failed with ``errno``."""

    def __init__(self, operation: str, errno: int, detail: str = "") -> None:
        text = detail or os.strerror(errno)
        super().__init__(f"{operation}: {text}")
        self.operation, self.errno, self.detail = operation, errno, detail


class NamespaceGone(DataplaneError):
    """The network namespace cannot be entered: it ended, or the path never was one."""

    def __init__(self, namespace: str, reason: str) -> None:
        super().__init__(f"network namespace {namespace}: {reason}")
        self.namespace, self.reason = namespace, reason


class InterfaceTaken(DataplaneError):
    """An interface of that name is there and not ours."""

    def __init__(self, interface: str, where: str, owner: str = "") -> None:
        by = f" (owner: {owner})" if owner else ""
        super().__init__(f"{interface} exists already in {where}{by}")
        self.interface, self.where, self.owner = interface, where, owner


class RouteTaken(DataplaneError):
    """The host's route to a workload's address leads elsewhere. ``owner``: the interface, where it is one."""

    def __init__(self, destination: str, owner: str) -> None:
        super().__init__(f"the host's route to {destination} belongs to {owner}")
        self.destination, self.owner = destination, owner


# --- routing -------------------------------------------------------------------------------------


class RoutingError(CalicoError):
    """The routing daemon cannot do what was asked."""


class ConfigRejected(RoutingError):
    """The daemon's own check refused the configuration; the old one stays. ``line`` counts from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"routing configuration refused at line {line}: {reason}")
        self.line, self.reason = line, reason


class DaemonDown(RoutingError):
    """The daemon does not answer on its control socket."""

    retryable = True

    def __init__(self, socket: str, reason: str) -> None:
        super().__init__(f"routing daemon at {socket}: {reason}")
        self.socket, self.reason = socket, reason


# --- plugins -------------------------------------------------------------------------------------


class PluginError(CalicoError):
    """A plugin cannot be used."""


class PluginMissing(PluginError):
    """No plugin of that name is installed in the namespace."""

    def __init__(self, namespace: str, name: str, available: tuple[str, ...] = ()) -> None:
        known = ", ".join(available) or "none"
        super().__init__(f"no plugin {name!r} in {namespace}; installed: {known}")
        self.namespace, self.name, self.available = namespace, name, available


class PluginIncompatible(PluginError):
    """The plugin was written for another version of the plugin host's API."""

    def __init__(self, name: str, wants: int, have: int) -> None:
        super().__init__(f"plugin {name!r} was written for API version {wants}, this host offers {have}")
        self.name, self.wants, self.have = name, wants, have


class PluginBroken(PluginError):
    """The plugin failed to load or to prepare; the cause is chained."""

    def __init__(self, name: str, distribution: str, reason: str) -> None:
        super().__init__(f"plugin {name!r} from {distribution}: {reason}")
        self.name, self.distribution, self.reason = name, distribution, reason


class NotReady(CalicoError):
    """The node cannot serve the request yet (starting, draining, datastore not ready)."""

    retryable = True

    def __init__(self, reason: str) -> None:
        super().__init__(f"not ready: {reason}")
        self.reason = reason


class StoreNotReady(NotReady):
    """The datastore answers, and its ``Ready`` is not ``true``: it is being filled, moved or repaired."""
