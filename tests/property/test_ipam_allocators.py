"""Allocators of several hosts over one store, with other writers slipping in ahead of any transaction, connections
refused and answers lost, against a dictionary. Source: ipam specification 12, invariants 1 to 7, 9 to 13, 16, 18."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from netaddr import IPAddress, IPNetwork

from calico_core.datastore.memory import MemoryDatastore
from calico_core.datastore.records import TypedRecords
from calico_core.errors import AffinityHeld, InvalidRequest, IpamError, NoPools, OutsidePools, StaleRelease, Unavailable
from calico_core.ipam import blocks
from calico_core.ipam.allocator import BlockIpam
from calico_core.model.blocks import IpamConfig, Reservation
from calico_core.model.keys import IpamConfigKey, PoolKey, ReservationKey
from tests.doubles.ipam_store import a_request, add_pool, check_laws, configure, contents

POOLS = ("10.0.0.0/28", "10.0.1.0/29", "fd00::/124")
HOSTS = ("hostA", "hostA", "hostB", "hostC")  # two processes on the first

CLIENTS = st.integers(0, len(HOSTS) - 1)
HANDLES = st.sampled_from(["h1", "h2", "h3", "h4", "h5"])
EXACT = st.sampled_from([(), ("10.0.0.3",), ("10.0.1.7",), ("fd00::9",), ("10.0.0.9", "fd00::1")])
FAULTS = st.sampled_from([None, None, "refuse", "unanswered", "rival"])
NTH = st.integers(1, 4)


class AllocatorMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.store = MemoryDatastore()
        self.now_ns = 1_700_000_000_000_000_000
        for cidr in POOLS:
            self.set_pool(cidr, disabled=False)
        records = TypedRecords(self.store)
        self.clients = [BlockIpam(records, host, clock_ns=self.clock_ns) for host in HOSTS]

    def clock_ns(self) -> int:
        self.now_ns += 1
        return self.now_ns

    def not_for_choosing(self) -> set[IPAddress]:
        """Reserved, or given back too lately."""
        records = TypedRecords(self.store)
        reservation = records.get(ReservationKey("r"))
        found = {address for cidr in (reservation.record.cidrs if reservation else ()) for address in cidr}
        config = records.get(IpamConfigKey())
        cooldown_s = (config.record if config else IpamConfig()).cooldown_s
        for block in contents(self.store).blocks.values():
            for ordinal, index in enumerate(block.allocations):
                since = block.attributes[index].cooling_since if index is not None else None
                if since is not None and abs((blocks.moment(self.now_ns) - since).total_seconds()) < cooldown_s:
                    found.add(blocks.address_at(block, ordinal))
        return found

    def set_pool(self, cidr: str, *, disabled: bool) -> None:
        add_pool(self.store, cidr, block_size=30 if "." in cidr else 126, disabled=disabled)

    def calm(self) -> None:
        self.trouble(None, 1, 0, "")

    def trouble(self, kind: str | None, nth: int, rival: int, handle: str) -> None:
        """For the next call only."""
        self.store.faults._before.clear()
        self.store.faults._refused.clear()
        self.store.faults._unanswered.clear()
        match kind:
            case "refuse":
                self.store.faults.refuse(nth)
            case "unanswered":
                self.store.faults.apply_unanswered(nth)
            case "rival":
                self.store.faults.before(nth, lambda: self.rival(rival, handle))

    def rival(self, client: int, handle: str) -> None:
        """A process of its own, with what is cached nowhere else."""
        other = BlockIpam(TypedRecords(self.store), HOSTS[client], clock_ns=self.clock_ns)
        if not other.release_by_handle([handle]):
            try:
                other.auto_assign(a_request(handle, 2))
            except IpamError:
                return

    @rule(
        client=CLIENTS, handle=HANDLES, v4=st.integers(0, 5), v6=st.integers(0, 2), exact=EXACT,
        kind=FAULTS, nth=NTH, rival=CLIENTS, other=HANDLES,
    )  # fmt: skip
    def assign(
        self, client: int, handle: str, v4: int, v6: int, exact: tuple[str, ...],
        kind: str | None, nth: int, rival: int, other: str,
    ) -> None:  # fmt: skip
        before = contents(self.store).holders()
        forbidden = self.not_for_choosing()
        owners = contents(self.store).affinities
        self.trouble(kind, nth, rival, other)
        try:
            given = self.clients[client].auto_assign(a_request(handle, v4, v6, *exact), deadline_s=5)
        except (IpamError, Unavailable) as error:
            if kind != "rival" and not isinstance(error, Unavailable):
                assert contents(self.store).holders() == before
            return
        found = contents(self.store)
        assert set(given) <= found.of_handle(handle)
        assert {IPAddress(text) for text in exact} <= set(given)
        for version, number in ((4, v4), (6, v6)):
            mine = [address for address in given if address.version == version]
            wanted = max(number, sum(1 for text in exact if IPAddress(text).version == version))
            assert len(mine) == len(set(mine)) == wanted
        held_before = {address for address, holder in before.items() if holder == handle}
        if kind != "rival":
            assert found.of_handle(handle) == held_before | set(given), "never more than was asked for"
            others = {address: holder for address, holder in found.holders().items() if holder != handle}
            assert others == {address: holder for address, holder in before.items() if holder != handle}
            chosen = set(given) - {IPAddress(text) for text in exact} - held_before
            assert not chosen & forbidden
            lost = {block for block, owner in owners.items() if found.affinities.get(block) != owner}
            assert not any(address in block for block in lost for address in before), "only idle blocks change hands"

    @rule(client=CLIENTS, handles=st.lists(HANDLES, max_size=3), kind=FAULTS, nth=NTH, rival=CLIENTS, other=HANDLES)
    def release_by_handle(
        self, client: int, handles: list[str], kind: str | None, nth: int, rival: int, other: str
    ) -> None:
        before = contents(self.store)
        self.trouble(kind, nth, rival, other)
        try:
            freed = self.clients[client].release_by_handle(handles)
        except Unavailable:
            return
        found = contents(self.store)
        if kind == "rival":
            return
        assert set(freed) == set().union(*(before.of_handle(handle) for handle in handles))
        assert all(not found.of_handle(handle) for handle in handles)
        assert len(found.holders()) == len(before.holders()) - len(freed)

    @rule(client=CLIENTS, owner=HANDLES, named=st.none() | HANDLES, kind=FAULTS, nth=NTH)
    def release(self, client: int, owner: str, named: str | None, kind: str | None, nth: int) -> None:
        before = contents(self.store)
        addresses = [*before.of_handle(owner), IPAddress("10.0.0.2"), IPAddress("192.0.2.1")]
        self.trouble(None if kind == "rival" else kind, nth, 0, owner)
        try:
            was_free = self.clients[client].release(addresses, handle=named)
        except StaleRelease:
            assert contents(self.store) == before
            return
        except Unavailable:
            return
        assert set(was_free) == {address for address in addresses if address not in before.holders()}
        left = {address: holder for address, holder in before.holders().items() if address not in addresses}
        assert contents(self.store).holders() == left

    @rule(client=CLIENTS, host=st.sampled_from(HOSTS), cidr=st.sampled_from(["10.0.0.4/30", "10.0.1.0/29"]))
    def claim(self, client: int, host: str, cidr: str) -> None:
        self.calm()
        try:
            self.clients[client].claim_affinity(IPNetwork(cidr), host)
        except (AffinityHeld, OutsidePools, InvalidRequest):
            return
        found = contents(self.store).affinities
        assert all(found[block] == host for block in IPNetwork(cidr).subnet(30))

    @rule(client=CLIENTS, host=st.sampled_from(HOSTS))
    def remove_host(self, client: int, host: str) -> None:
        before = contents(self.store)
        self.calm()
        self.clients[client].release_host(host)
        found = contents(self.store)
        assert host not in found.affinities.values()
        left = {address: holder for address, holder in before.holders().items() if before.node_of(address) != host}
        assert found.holders() == left

    @rule(cidr=st.sampled_from(POOLS), disabled=st.booleans())
    def change_pool(self, cidr: str, disabled: bool) -> None:
        self.calm()
        self.set_pool(cidr, disabled=disabled)

    @rule(strict=st.booleans(), cooldown_s=st.sampled_from([0, 0, 30]))
    def change_rules(self, strict: bool, cooldown_s: int) -> None:
        self.calm()
        configure(self.store, strict_affinity=strict, cooldown_s=cooldown_s)

    @rule(cidrs=st.lists(st.sampled_from(["10.0.0.0/30", "10.0.1.5/32", "fd00::/126"]), max_size=2))
    def reserve(self, cidrs: list[str]) -> None:
        self.calm()
        record = Reservation(cidrs=tuple(IPNetwork(cidr) for cidr in cidrs))
        TypedRecords(self.store).put(ReservationKey("r"), record)

    @rule(seconds=st.sampled_from([1, 20, 31, 61]))
    def wait(self, seconds: int) -> None:
        self.now_ns += seconds * 10**9

    @rule(client=CLIENTS)
    def sweep(self, client: int) -> None:
        before = contents(self.store).holders()
        self.calm()
        self.clients[client].sweep()
        assert contents(self.store).holders() == before

    @rule(client=CLIENTS)
    def completeness(self, client: int) -> None:
        """Whoever is alone gets an address as long as one is free and borrowing is allowed."""
        self.calm()
        configure(self.store, strict_affinity=False)
        self.store.delete(ReservationKey("r").path)
        pools = [
            pool.record.cidr
            for pool in TypedRecords(self.store).list("/calico/v1/ipam/v4/pool/")
            if isinstance(pool.key, PoolKey) and pool.record.is_assignable
        ]
        held = [address for address in contents(self.store).holders() if any(address in pool for pool in pools)]
        is_possible = len(held) < sum(pool.size for pool in pools)
        try:
            given = self.clients[client].auto_assign(a_request("probe", 1))
        except NoPools:
            assert not pools
        except IpamError:
            assert not is_possible
        else:
            assert is_possible
            assert self.clients[client].release_by_handle(["probe"]) == given

    @invariant()
    def laws_hold(self) -> None:
        if hasattr(self, "store"):
            check_laws(self.store)


AllocatorMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAllocators = AllocatorMachine.TestCase
