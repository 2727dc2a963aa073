"""The record of a laboratory: written down once, changed by one writer at a time, erased completely."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
from netaddr import IPAddress

from calico_core.errors import InvalidRequest
from calico_core.lab.journal import Journal, laboratory_names
from calico_core.lab.plan import plan
from calico_core.lab.record import LabRecord, ProcessRecord, WorkloadRecord


def a_lab(**changes: object) -> LabRecord:
    fabric, hosts = plan("one", ["a", "b"], fabric="router", ipv6=True)
    record = LabRecord(
        name="one",
        state="planned",
        created="2024-01-01T00:00:00+00:00",
        datastore="sqlite:///x",
        has_own_etcd=False,
        ipv6=True,
        routing="none",
        fabric=fabric,
        hosts=hosts,
        processes=(ProcessRecord(what="calico-node", host="a", pid=1, started=2),),
        workloads=(
            WorkloadRecord(
                number=1, name="w-1", host="a", namespace="one-w-1", container_id="x", addresses=(IPAddress("::1"),)
            ),
        ),
    )
    return msgspec.structs.replace(record, **changes)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    journal = Journal("one", root=tmp_path / "labs")
    journal.begin(a_lab())
    assert Journal("one", root=tmp_path / "labs").read() == a_lab()
    assert journal.directory.stat().st_mode & 0o777 == 0o700
    assert laboratory_names(tmp_path / "labs") == ("one",)


def test_a_second_one_of_the_name_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    Journal("one", root=tmp_path).begin(a_lab())
    with pytest.raises(InvalidRequest, match="exists already"):
        Journal("one", root=tmp_path).begin(a_lab(datastore="other"))
    assert Journal("one", root=tmp_path).read() == a_lab()


def test_a_directory_without_a_record_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    Journal("one", root=tmp_path).begin(a_lab())
    assert Journal("one", root=tmp_path).read() == a_lab()


def test_a_missing_laboratory_is_named_with_those_there(tmp_path: Path) -> None:
    Journal("one", root=tmp_path).begin(a_lab())
    with pytest.raises(InvalidRequest, match=r"no laboratory 'two'; those there are: one"):
        Journal("two", root=tmp_path).read()
    assert Journal("two", root=tmp_path).find() is None


def test_no_update_is_lost_between_many_writers(tmp_path: Path) -> None:
    Journal("one", root=tmp_path).begin(a_lab(next_workload=0))

    def count() -> None:
        journal = Journal("one", root=tmp_path)
        for _ in range(25):
            journal.update(lambda now: msgspec.structs.replace(now, next_workload=now.next_workload + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert Journal("one", root=tmp_path).read().next_workload == 100


def test_erasing_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    root = tmp_path / "labs"
    journal = Journal("one", root=root)
    journal.begin(a_lab())
    (journal.directory / "a").mkdir()
    (journal.directory / "a" / "file").write_text("x")
    (journal.directory / "link").symlink_to(tmp_path)
    with journal.life():
        journal.erase()
    journal.erase()
    assert not root.exists()
    assert tmp_path.exists()


def test_a_failed_change_leaves_the_record(tmp_path: Path) -> None:
    journal = Journal("one", root=tmp_path)
    journal.begin(a_lab())

    def fail(_: LabRecord) -> LabRecord:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        journal.update(fail)
    assert journal.read() == a_lab()
    journal.update(lambda now: now)  # the lock is free again


def test_who_waits_for_an_erased_laboratory_hears_that_it_is_gone(tmp_path: Path) -> None:
    journal = Journal("one", root=tmp_path / "labs")
    journal.begin(a_lab())
    heard: list[BaseException] = []
    entered = threading.Event()

    def wait() -> None:
        entered.set()
        try:
            with Journal("one", root=tmp_path / "labs").life():
                heard.append(AssertionError("got the lock of an erased laboratory"))
        except InvalidRequest as error:
            heard.append(error)

    waiter = threading.Thread(target=wait)
    with journal.life():
        waiter.start()
        assert entered.wait(20)
        journal.erase()
    waiter.join(10)
    assert [type(each) for each in heard] == [InvalidRequest]
    assert not (tmp_path / "labs").exists()
