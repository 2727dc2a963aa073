from __future__ import annotations

import threading

from calico_core.stopwatch import lap, measured


def test_a_block_inside_another_adds_to_it() -> None:
    with measured() as outer:
        lap("first")
        with measured() as inner:
            assert inner is outer
            inner.lap("second")
        lap("third")
        assert [name for name, _ in outer.steps] == ["first_ms", "second_ms", "third_ms"]
        assert all(ms >= 0 for _, ms in outer.steps)
        assert outer.total_ms >= sum(ms for _, ms in outer.steps)


def test_nobody_measures() -> None:
    lap("lost")
    with measured() as later:
        pass
    assert later.steps == []


def test_threads_measure_their_own() -> None:
    seen: list[list[tuple[str, float]]] = []

    def other() -> None:
        with measured() as watch:
            lap("theirs")
            seen.append(watch.steps)

    with measured() as mine:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert (mine.steps, [name for name, _ in seen[0]]) == ([], ["theirs_ms"])
