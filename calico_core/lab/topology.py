"""The laboratory: hosts in network namespaces on one machine, for rehearsals, demonstrations and tests.

::

    with Laboratory.create("calico-lab", 2) as lab:      # up on entry, down on exit
        for host in lab.hosts:
            host.start_node()

Whatever was made can be removed by another process, also after a crash at any point: see :mod:`record`. The machine's
own network namespace stays as it is.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec
from netaddr import IPAddress

from calico_core.dataplane.linux import netns
from calico_core.errors import InvalidRequest, NotReady
from calico_core.lab import etcd, processes
from calico_core.lab import fabric as links
from calico_core.lab.host import LabHost
from calico_core.lab.journal import ROOT, Journal, laboratory_names
from calico_core.lab.plan import check_name, host_names, plan
from calico_core.lab.record import FabricKind, LabRecord, RoutingDriver
from calico_core.lab.station import PlainStation
from calico_core.lab.status import LabStatus, look
from calico_core.lab.workload import LabWorkload
from calico_core.log import get_logger

log = get_logger(__name__)

DEFAULT_NAME = "calico-lab"
_STOP_GRACE_S = 5.0
_GONE_WAIT_S = 10.0


class Laboratory:
    """One laboratory. Threads and processes may share it by name: all state is in its directory."""

    def __init__(self, journal: Journal, environment: Mapping[str, str] | None = None) -> None:
        self._journal = journal
        self._environment = dict(environment or {})

    @classmethod
    def create(
        cls,
        name: str = DEFAULT_NAME,
        hosts: int | Sequence[str] = 2,
        *,
        fabric: FabricKind = "bridge",
        datastore: str = "sqlite",
        ipv6: bool = False,
        routing: RoutingDriver = "bird",
        environment: Mapping[str, str] | None = None,
        root: Path = ROOT,
    ) -> Self:
        """Write a laboratory down; :meth:`up` makes it.

        ``datastore`` is ``sqlite`` (a file of the laboratory), ``etcd`` (a server of its own, on the fabric) or the
        URL of one that every host reaches; records in that one are left behind. ``environment`` is added to that of
        every program the hosts run by this object.

        :raises InvalidRequest: a bad argument, or the name (or a namespace it needs) is taken.
        """
        check_name(name)
        if os.geteuid():
            raise InvalidRequest("user", "network namespaces need root; try again with sudo")
        _check_choice("fabric", fabric, ("bridge", "router"))
        _check_choice("routing", routing, ("bird", "none"))
        fabric_record, host_records = plan(name, host_names(hosts), fabric=fabric, ipv6=ipv6)
        journal = Journal(name, root=root)
        record = LabRecord(
            name=name,
            state="planned",
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            datastore=_datastore_url(datastore, journal.directory, fabric_record.addresses[0]),
            has_own_etcd=datastore == "etcd",
            ipv6=ipv6,
            routing=routing,
            fabric=fabric_record,
            hosts=host_records,
        )
        if journal.find() is None:  # otherwise `begin` says what is wrong
            for namespace in record.namespaces:
                if _namespace_path(namespace).exists():
                    raise InvalidRequest("name", f"network namespace {namespace} exists and is not of a laboratory")
        journal.begin(record)
        return cls(journal, environment)

    @classmethod
    def load(cls, name: str = DEFAULT_NAME, *, environment: Mapping[str, str] | None = None, root: Path = ROOT) -> Self:
        """An existing one, made by whichever process.

        :raises InvalidRequest: there is none of that name.
        """
        check_name(name)
        journal = Journal(name, root=root)
        journal.read()
        return cls(journal, environment)

    @staticmethod
    def remove(name: str = DEFAULT_NAME, *, root: Path = ROOT) -> bool:
        """Take the laboratory of that name down, whatever is left of it; whether there was anything."""
        journal = Journal(check_name(name), root=root)
        was_there = journal.directory.is_dir()
        Laboratory(journal).down()
        return was_there

    @staticmethod
    def names(*, root: Path = ROOT) -> tuple[str, ...]:
        """Every laboratory of this machine."""
        return laboratory_names(root)

    @property
    def name(self) -> str:
        return self._journal.name

    @property
    def directory(self) -> Path:
        return self._journal.directory

    @property
    def record(self) -> LabRecord:
        return self._journal.read()

    @property
    def hosts(self) -> tuple[LabHost, ...]:
        record = self.record
        return tuple(LabHost(self._journal, host, record, self._environment) for host in record.hosts)

    def host(self, name: str) -> LabHost:
        for host in self.hosts:
            if host.name == name:
                return host
        raise InvalidRequest("host", f"{name!r} is not one of {', '.join(host.name for host in self.hosts)}")

    @property
    def fabric(self) -> PlainStation:
        """The namespace between the hosts, as the world outside of them."""
        record = self.record.fabric
        return PlainStation(
            name="fabric", namespace=_namespace_path(record.namespace), addresses=tuple(record.addresses)
        )

    @property
    def workloads(self) -> tuple[LabWorkload, ...]:
        by_name = {host.name: host for host in self.hosts}
        return tuple(LabWorkload(self._journal, by_name[each.host], each) for each in self.record.workloads)

    def workload(self, name: str) -> LabWorkload:
        for workload in self.workloads:
            if workload.name == name:
                return workload
        known = ", ".join(workload.name for workload in self.workloads) or "none"
        raise InvalidRequest("workload", f"{name!r} is not one of {known}")

    def add_workload(self, host: LabHost | str, name: str = "") -> LabWorkload:
        """A container on the host, not attached yet. ``name`` defaults to ``w-<number>``."""
        on = self.host(host) if isinstance(host, str) else host
        return LabWorkload.create(self._journal, on, name)

    def reboot(self, host: LabHost) -> None:
        """Its processes and containers end, and all that was in its kernel and in its run directory is gone; the
        datastore and the disk stay as they were. Nothing is started."""
        record = self.record
        planned = next(each for each in record.hosts if each.name == host.name)
        containers = [each.namespace for each in record.workloads if each.host == host.name]
        host.kill_node()
        self._remove_namespaces([planned.namespace, *containers])
        shutil.rmtree(host.directory / "run", ignore_errors=True)
        host.make_directories()
        links.rejoin(record.fabric, planned)
        log.info("lab.rebooted", host=host.name)

    def up(self) -> Self:
        """Namespaces, links and, when asked for, etcd; nodes are started by the hosts. Already up is success.

        A failure takes everything down again.
        """
        with self._journal.life():
            if self.record.state == "up":
                return self
            started = time.monotonic()
            try:
                record = self.record
                self._remove_kernel_objects(record)  # what a crashed attempt left
                for host in self.hosts:
                    host.make_directories()
                links.build(record.fabric, record.hosts)
                if record.has_own_etcd:
                    process = etcd.start(self.fabric, self.directory)
                    self._journal.update(lambda now: msgspec.structs.replace(now, processes=(*now.processes, process)))
                    etcd.await_health(process, self.fabric, self.directory)
                self._journal.update(lambda now: msgspec.structs.replace(now, state="up"))
            except BaseException:
                self._remove()
                raise
            log.info("lab.up", lab=self.name, hosts=len(record.hosts), seconds=round(time.monotonic() - started, 3))
        return self

    def down(self) -> None:
        """End its processes, remove its namespaces with all links, and its directory. Already gone is success."""
        if not self.directory.is_dir():
            return
        try:
            with self._journal.life():
                self._remove()
        except InvalidRequest:
            if self.directory.is_dir():
                raise
            return  # another process was faster
        log.info("lab.down", lab=self.name)

    def status(self) -> LabStatus:
        return look(self.record, self.directory, self.hosts)

    def __enter__(self) -> Self:
        return self.up()

    def __exit__(self, *_: object) -> None:
        self.down()

    def _remove(self) -> None:
        """Under the life lock."""
        record = self._journal.find()
        if record is not None:
            self._remove_kernel_objects(record)
        self._journal.erase()

    def _remove_kernel_objects(self, record: LabRecord) -> None:
        processes.stop(record.processes, grace_s=_STOP_GRACE_S)
        self._remove_namespaces(record.namespaces)

    def _remove_namespaces(self, names: Collection[str]) -> None:
        paths = [_namespace_path(name) for name in names]
        # also what nobody wrote down: BIRD outlives its node, and a crash may fall between a start and its record
        deadline = time.monotonic() + _GONE_WAIT_S
        grace_s = 1.0
        while left := processes.inside(paths):
            processes.stop(left, grace_s=grace_s)
            grace_s = 0.0
            if time.monotonic() > deadline:
                raise NotReady(f"processes do not end: {', '.join(f'{each.what}/{each.pid}' for each in left)}")
        for name in names:
            netns.delete_namespace(name)


def _datastore_url(datastore: str, directory: Path, fabric_address: IPAddress) -> str:
    if datastore == "sqlite":
        return f"sqlite://{directory / 'calico.db'}"
    if datastore == "etcd":
        return etcd.url_of(fabric_address)
    if "://" not in datastore:
        raise InvalidRequest("datastore", f"{datastore!r} is not sqlite, etcd or a URL")
    return datastore


def _namespace_path(name: str) -> Path:
    return netns.NAMED / name


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidRequest(field, f"{value!r} is not one of {', '.join(choices)}")
