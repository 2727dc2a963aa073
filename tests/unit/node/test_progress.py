"""Written, programmed, failed, healed: what is said of an endpoint, and who is let go when."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from calico_core.model.keys import WorkloadEndpointKey
from calico_core.node.progress import EndpointProgress

WAIT_S = 10.0
A, B = (WorkloadEndpointKey("rack-a", "cni", "pod", name) for name in "ab")


@pytest.fixture
def progress() -> EndpointProgress:
    made = EndpointProgress()
    made.write(A, 5, "cali-a")
    made.write(B, 6, "cali-b")
    return made


def test_nothing_is_said_before_an_apply(progress: EndpointProgress) -> None:
    assert not progress.wait(A, 5, 0)
    assert dict(progress.status) == {}
    assert len(progress) == 2


def test_an_apply_decides_about_everything_written(progress: EndpointProgress) -> None:
    progress.decide({B.path: "no such set"})
    assert progress.wait(A, 5, 0)
    assert progress.wait(A, 4, 0)
    assert not progress.wait(A, 6, 0)
    assert not progress.wait(B, 6, WAIT_S)  # decided: nobody waits
    assert dict(progress.status) == {A: ("up", ""), B: ("error", "no such set")}


def test_a_failure_heals(progress: EndpointProgress) -> None:
    progress.decide({B.path: "no such set"})
    progress.decide({})
    assert progress.wait(B, 6, 0)
    assert progress.status[B] == ("up", "")


def test_a_programmed_endpoint_may_fail_later_and_heal(progress: EndpointProgress) -> None:
    progress.decide({})
    progress.decide({A.path: "flushed"})
    assert progress.status[A] == ("error", "flushed")
    assert progress.status[B] == ("up", "")
    progress.decide({})
    assert progress.status[A] == ("up", "")


def test_failures_of_other_things_do_not_matter(progress: EndpointProgress) -> None:
    progress.decide({"profile/web": "rule 1"})
    assert progress.wait(A, 5, 0)


def test_a_failure_of_the_whole_fails_everything_written(progress: EndpointProgress) -> None:
    progress.decide({}, whole="no memory")
    assert not progress.wait(A, 5, 0)
    assert progress.status[B] == ("error", "no memory")
    progress.decide({})
    assert progress.wait(A, 5, 0)


def test_links_come_and_go(progress: EndpointProgress) -> None:
    progress.note_links([A, B], [A])
    progress.decide({})
    assert progress.status[A] == ("down", "its interface does not exist or is down")
    assert progress.status[B] == ("up", "")
    assert progress.wait(A, 5, 0)  # its policy stands all the same
    progress.note_links(progress.of_interface("cali-a"), [])
    assert progress.status[A] == ("up", "")
    progress.note_links(progress.of_interface("cali-b"), [B])
    assert progress.status[B][0] == "down"
    assert progress.status[A] == ("up", "")


def test_links_of_strangers_are_ignored(progress: EndpointProgress) -> None:
    stranger = WorkloadEndpointKey("rack-a", "cni", "pod", "z")
    progress.note_links([], [stranger])
    progress.decide({})
    assert set(progress.status) == {A, B}
    assert progress.of_interface("nobody") == frozenset()
    assert progress.of_interface("") == {A, B}


def test_an_endpoint_may_change_its_interface(progress: EndpointProgress) -> None:
    progress.write(A, 7, "cali-c")
    assert progress.of_interface("cali-a") == frozenset()
    assert progress.of_interface("cali-c") == {A}


def test_a_removed_endpoint_is_forgotten(progress: EndpointProgress) -> None:
    progress.decide({A.path: "bad"})
    progress.remove(A)
    progress.remove(A)
    assert set(progress.status) == {B}
    assert not progress.wait(A, 5, 0)
    assert progress.of_interface("cali-a") == frozenset()
    progress.decide({A.path: "still mentioned"})
    assert set(progress.status) == {B}


@pytest.mark.parametrize("ending", ["programmed", "failed", "closed"])
def test_whoever_waits_is_let_go(progress: EndpointProgress, ending: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(progress.wait, A, 5, 60.0) for _ in range(4)]
        if ending == "closed":
            progress.close()
        else:
            progress.decide({A.path: "bad"} if ending == "failed" else {})
        assert [each.result(WAIT_S) for each in waiting] == [ending == "programmed"] * 4


def test_an_inactive_endpoint_is_down_unless_something_worse(progress: EndpointProgress) -> None:
    progress.write(A, 7, "cali-a", is_active=False)
    progress.decide({})
    assert progress.status[A] == ("down", "its record says that it is inactive")
    progress.note_links([A], [A])
    assert progress.status[A] == ("down", "its interface does not exist or is down")
    progress.decide({A.path: "refused"})
    assert progress.status[A] == ("error", "refused")
    progress.decide({})
    progress.note_links([A], [])
    progress.write(A, 8, "cali-a")
    progress.decide({})
    assert progress.status[A] == ("up", "")
