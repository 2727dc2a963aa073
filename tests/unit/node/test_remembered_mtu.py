"""The MTU of workloads, from a node that runs to a process that runs without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from calico_core.node.remembered_mtu import RememberedMtu
from calico_core.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_directory=str(tmp_path))


def test_what_is_noted_is_read_by_another(settings: Settings) -> None:
    assert RememberedMtu(settings).read() is None
    for mtu_bytes in (1450, 1400, None, None, 1450):
        RememberedMtu(settings).note(mtu_bytes)
        assert RememberedMtu(settings).read() == mtu_bytes


def test_the_same_again_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    RememberedMtu(settings).note(1450)
    (file,) = tmp_path.iterdir()
    before = file.stat()
    RememberedMtu(settings).note(1450)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("text", [b"", b"large", b"\xff"])
def test_a_file_that_is_not_ours_is_no_mtu(settings: Settings, tmp_path: Path, text: bytes) -> None:
    RememberedMtu(settings).note(1450)
    (file,) = tmp_path.iterdir()
    file.write_bytes(text)
    assert RememberedMtu(settings).read() is None
    RememberedMtu(settings).note(1450)
    assert RememberedMtu(settings).read() == 1450


def test_a_directory_that_cannot_be_written_keeps_nobody() -> None:
    unwritable = RememberedMtu(Settings(state_directory="/dev/null/state"))
    unwritable.note(1450)
    assert unwritable.read() is None
