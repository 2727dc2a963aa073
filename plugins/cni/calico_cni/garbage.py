"""GC: removes what belongs to one network on this node and to none of the attachments that the runtime still knows.

What is younger than a minute stays: its attachment may be newer than the list. Every failure is told, none stops the
others. Source: cni specification 6, GC.
"""

from __future__ import annotations

import datetime as dt
import functools
import time
from collections.abc import Callable, Iterator

import msgspec

from calico_cni.errors import CollectionFailed
from calico_cni.identity import FIRST_INTERFACE, handle_of, legacy_handles
from calico_cni.wire import CommonConfiguration
from calico_core.errors import CalicoError, InvalidRequest
from calico_core.interfaces.integration import IntegrationContext
from calico_core.log import get_logger
from calico_core.model.blocks import Block
from calico_core.model.endpoints import EndpointAttachment, WorkloadEndpoint
from calico_core.model.keys import BLOCKS, HOSTS
from calico_core.model.workloads import Detach

YOUNG_S = 60.0

Attachments = frozenset[tuple[str, str]]
"""Container ID and interface."""

log = get_logger(__name__)


class _Attachment(msgspec.Struct, frozen=True, kw_only=True):
    container_id: str = msgspec.field(name="containerID")
    ifname: str = FIRST_INTERFACE


def valid_attachments(configuration: CommonConfiguration) -> Attachments:
    """``null`` is how libcni writes the empty list of a runtime without containers (in Go it has no other form).

    :raises InvalidRequest: there is no list. That never means that everything is stale.
    """
    is_empty = False
    for field, raw in (
        ("cni.dev/valid-attachments", bytes(configuration.valid_attachments)),
        ("cni.dev/attachments", bytes(configuration.attachments)),
    ):
        if raw in {b"", b"null"}:
            is_empty = is_empty or bool(raw)
            continue
        try:
            found = msgspec.json.decode(raw, type=list[_Attachment])
        except msgspec.DecodeError as error:
            raise InvalidRequest(field, str(error)) from error
        return frozenset((each.container_id, each.ifname) for each in found)
    if is_empty:
        return frozenset()
    raise InvalidRequest("cni.dev/valid-attachments", "is required for GC")


class Garbage:
    """Of one network on this node."""

    def __init__(
        self,
        context: IntegrationContext,
        network: str,
        valid: Attachments,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._context = context
        self._network = network
        self._valid = valid
        self._now = clock()
        self._failures: list[BaseException] = []

    def collect_endpoints(self) -> None:
        for found in self._context.records.list(f"{HOSTS}{self._context.host}/workload/"):
            record = found.record
            container = record.container_id
            for attachment in attachments_of(record):
                interface = attachment.ifname
                if attachment.network != self._network or container is None or (container, interface) in self._valid:
                    continue
                if self._is_young(attachment.created or 0.0):
                    continue
                handles = (handle_of(self._network, container, interface), *legacy_handles(container, interface))
                stale = Detach(
                    key=found.key,  # type: ignore[arg-type]  # nothing else lies below that prefix
                    interface=record.name,
                    handles=handles,
                    container_id=container,
                    network=self._network,
                    container_interface=interface,
                    is_shared=bool(record.attachments),
                )
                log.info("garbage.endpoint", endpoint=found.key.path, container=container, interface=interface)
                self._attempt(functools.partial(self._context.workloads.detach, stale))

    def collect_handles(self) -> None:
        """Addresses whose endpoint is gone, or of attachments that another network plugin made."""
        stale = self._stale_handles()
        # a shared endpoint keeps the handle of the network that made it, which may have gone before the others
        for handle in sorted(stale - self._shared_handles() if stale else stale):
            log.info("garbage.handle", handle=handle)
            self._attempt(functools.partial(self._context.ipam.release_by_handle, (handle,)))

    def collect_interfaces(self) -> None:
        """Host ends of which nobody has a record, whatever network they were of: no list can name them."""
        self._attempt(self._context.workloads.remove_orphans)

    def forward(self, to_delegate: Callable[[], None]) -> None:
        self._attempt(to_delegate)

    def raise_failures(self) -> None:
        """:raises CollectionFailed: with everything that went wrong until now."""
        if self._failures:
            raise CollectionFailed(tuple(self._failures))

    def _attempt(self, step: Callable[[], object]) -> None:
        try:
            step()
        except CalicoError as error:
            log.warning("garbage.failed", reason=str(error))
            self._failures.append(error)

    def _stale_handles(self) -> set[str]:
        found: set[str] = set()
        for block in self._context.records.list(BLOCKS):
            found.update(self._stale_in(block.record))
        return found

    def _shared_handles(self) -> set[str | None]:
        return {found.record.handle for found in self._context.records.list(f"{HOSTS}{self._context.host}/workload/")}

    def _stale_in(self, block: Block) -> Iterator[str]:
        for each in block.attributes:
            notes = each.secondary or {}
            if each.handle_id is None or (notes.get("node"), notes.get("network")) != (
                self._context.host,
                self._network,
            ):
                continue
            attachment = (str(notes.get("container", "")), str(notes.get("ifname", FIRST_INTERFACE)))
            if attachment not in self._valid and not self._is_young(_seconds(notes.get("timestamp"))):
                yield each.handle_id

    def _is_young(self, created: float) -> bool:
        return self._now - created < YOUNG_S


def attachments_of(record: WorkloadEndpoint) -> tuple[EndpointAttachment, ...]:
    """Those that stand, and the one that an endpoint has by itself where nothing is said of sharing."""
    if record.attachments or record.network is None:
        return record.attachments
    alone = EndpointAttachment(
        network=record.network, ifname=record.ifname or FIRST_INTERFACE, created=record.created or 0.0
    )
    return (alone,)


def _seconds(timestamp: object) -> float:
    """Since the epoch; 0 where there is none."""
    try:
        return dt.datetime.fromisoformat(str(timestamp)).timestamp()
    except ValueError:
        return 0.0
