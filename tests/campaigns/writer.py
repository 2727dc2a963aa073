"""One writer process of the torture campaign: a few threads over one allocator, as a node with several integrations.

It may be killed at any instruction; beside what the campaign does to it, it kills itself between any two calls of the
datastore. Started anew, it learns from its histories what it holds, and takes back what it cannot be sure of.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netaddr import IPAddress

from calico_core.datastore.etcd3 import Etcd3Datastore
from calico_core.datastore.records import TypedRecords
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.errors import Contended, DatastoreError, IpamError, StaleRelease, Unavailable
from calico_core.interfaces.datastore import Datastore, DatastoreOptions, Snapshot, TransactionResult
from calico_core.ipam import family_assignment
from calico_core.ipam.allocator import BlockIpam
from calico_core.model.workloads import AddressRequest
from tests.campaigns.history import Log, account_of

OPTIONS = DatastoreOptions(timeout_s=2.0)
DEADLINE_S = 4.0
MOST_HELD = range(2, 12)
"""How many handles a writer keeps, drawn anew every now and then: all together they want more than there is."""
SLOTS = 24  # handles of a writer: they come back, as names of workloads do


def open_store(url: str) -> Datastore:
    driver = SqliteDatastore if url.startswith("sqlite:") else Etcd3Datastore
    return driver.open(url, OPTIONS)


class KillingRecords(TypedRecords):
    """Typed records over a store that ends the process between two calls now and then."""

    def __init__(self, store: Datastore, dice: random.Random, one_in: int) -> None:
        super().__init__(_Killing(store, dice, one_in))  # type: ignore[arg-type]


class _Killing:
    def __init__(self, store: Datastore, dice: random.Random, one_in: int) -> None:
        self._store, self._dice, self._one_in = store, dice, one_in

    def transact(self, *arguments: Any) -> TransactionResult:
        self._perhaps()
        result = self._store.transact(*arguments)
        self._perhaps()
        return result

    def list(self, prefix: str) -> Snapshot:
        self._perhaps()
        return self._store.list(prefix)

    def _perhaps(self) -> None:
        if self._one_in and self._dice.randrange(self._one_in) == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Writer(threading.Thread):
    """``quota``: operations to complete, those of its earlier lives among them."""

    def __init__(self, ipam: BlockIpam, number: int, folder: Path, quota: int, dice: random.Random) -> None:
        super().__init__(name=f"writer {number}", daemon=True)
        self._ipam = ipam
        self._number = number
        self._quota = quota
        self._dice = dice
        path = folder / f"writer-{number}.log"
        account = account_of(path)
        self._log = Log(path)
        self._done = account.operations
        self._held = {handle: tuple(map(IPAddress, texts)) for handle, texts in account.held.items()}
        self._uncertain = set(account.uncertain)
        self._late: list[tuple[IPAddress, str, int | None]] = []  # what a call that is much too late would release
        self._ceiling = dice.choice(MOST_HELD)
        self.is_done = False

    def run(self) -> None:
        while self._done < self._quota or self._uncertain:
            if self._uncertain:
                self._give_back(min(self._uncertain))
                continue
            dice = self._dice.random()
            if dice < 0.005:
                self._ceiling = self._dice.choice(MOST_HELD)
            if self._late and dice < 0.03:
                self._release_late()
            elif len(self._held) >= self._ceiling or (self._held and dice < 0.45):
                self._give_back(self._dice.choice(sorted(self._held)))
            elif self._held and dice < 0.48:
                self._ask(self._dice.choice(sorted(self._held)))  # the same again, as after a lost answer
            else:
                self._ask(f"w{self._number}-{self._dice.randrange(SLOTS)}")
        self._log.close()
        self.is_done = True

    def _ask(self, handle: str) -> None:
        have = len(self._held.get(handle, ()))
        number = have or self._dice.choice([1, 1, 1, 1, 2])
        is_dual = not have and self._dice.random() < 0.1
        request = AddressRequest(handle=handle, num_v4=0 if is_dual else number, num_v6=1 if is_dual else 0)
        if have and any(address.version == 6 for address in self._held[handle]):
            request = AddressRequest(handle=handle, num_v6=have)
        self._log.begin("A", handle)
        try:
            given = self._ipam.auto_assign(request, deadline_s=DEADLINE_S)
        except (Unavailable, Contended) as error:
            self._not_known(handle, error)
            return
        except IpamError:
            self._log.end("n")
            self._done += 1
            return
        self._log.end("a", given)
        self._done += 1
        self._held[handle] = given

    def _give_back(self, handle: str) -> None:
        addresses = self._held.get(handle, ())
        is_by_address = bool(addresses) and handle not in self._uncertain and self._dice.random() < 0.1
        sequences = self._sequences(addresses) if is_by_address or self._dice.random() < 0.03 else {}
        self._log.begin("R", handle)
        try:
            if is_by_address and sequences:
                was_free = self._ipam.release(addresses, handle=handle, sequences=sequences)
                freed: Sequence[IPAddress] = [address for address in addresses if address not in was_free]
            else:
                freed = self._ipam.release_by_handle([handle])
        except (DatastoreError, Contended) as error:
            self._not_known(handle, error)
            return
        self._log.end("r", freed)
        self._done += 1
        self._late += [(address, handle, sequence) for address, sequence in sequences.items()]
        del self._late[:-20]
        self._held.pop(handle, None)
        self._uncertain.discard(handle)

    def _sequences(self, addresses: Sequence[IPAddress]) -> dict[IPAddress, int | None]:
        try:
            found = [self._ipam.allocation(address) for address in addresses]
        except DatastoreError:
            return {}
        return {allocation.address: allocation.sequence for allocation in found if allocation is not None}

    def _release_late(self) -> None:
        """It must do nothing; the check at the end sees whether it did."""
        address, handle, sequence = self._late.pop(self._dice.randrange(len(self._late)))
        try:
            self._ipam.release([address], handle=self._dice.choice([handle, None]), sequences={address: sequence})
        except (StaleRelease, DatastoreError, Contended):
            return

    def _not_known(self, handle: str, error: Exception) -> None:
        self._log.end("u")
        self._uncertain.add(handle)
        if isinstance(error, Unavailable):
            time.sleep(self._dice.uniform(0, 0.05))  # as a caller does before it comes again


def run_process(url: str, host: str, numbers: Sequence[int], folder: Path, quota: int, seed: str, one_in: int) -> None:
    """Until every writer has its quota. Ends the process."""
    faulthandler.enable()
    family_assignment.RECLAIM_AFTER_S = 1.0  # time in a lapse: idle blocks change hands while we look
    dice = random.Random(seed)
    store = open_store(url)
    ipam = BlockIpam(KillingRecords(store, random.Random(dice.random()), one_in), host)
    writers = [Writer(ipam, number, folder, quota, random.Random(dice.random())) for number in numbers]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    os._exit(0 if all(writer.is_done for writer in writers) else 3)
