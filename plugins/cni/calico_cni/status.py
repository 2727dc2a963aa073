"""STATUS: would an ADD be served? Source: cni specification 6."""

from __future__ import annotations

from calico_cni.errors import NotAvailable
from calico_cni.outcome import Outcome
from calico_cni.wire import IpamConfiguration
from calico_core.errors import DatastoreError
from calico_core.interfaces.datastore import Records
from calico_core.model.keys import POOLS, ReadyKey


def check_available(records: Records, ipam: IpamConfiguration) -> Outcome:
    """:raises NotAvailable: the datastore is away or not ready, or a family that is wanted has no pool."""
    try:
        ready = records.get(ReadyKey())
        pools = records.list(POOLS)
    except DatastoreError as error:
        raise NotAvailable(str(error)) from error
    if ready is None or ready.record != "true":
        raise NotAvailable(f"{ReadyKey().path} is not true: the datastore is not ready for use")
    usable = {found.record.cidr.version for found in pools if found.record.is_assignable}
    for version, is_wanted in ((4, ipam.assign_ipv4), (6, ipam.assign_ipv6)):
        if is_wanted and version not in usable:
            raise NotAvailable(f"no IPv{version} pool is enabled")
    return Outcome()
