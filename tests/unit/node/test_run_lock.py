"""The lock on a run directory: one node at a time, and nobody else's to take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from calico_core.errors import InvalidSettings, NotReady
from calico_core.node import purge
from calico_core.node.run_lock import take_run_directory
from calico_core.settings import Settings


def test_one_node_a_directory(tmp_path: Path) -> None:
    directory = str(tmp_path / "run")
    with take_run_directory(directory), pytest.raises(InvalidSettings) as caught:
        take_run_directory(directory)
    assert f"{directory} is in use by a running node (pid {os.getpid()})" in str(caught.value)
    take_run_directory(directory).close()
    assert (tmp_path / "run" / "node.lock").read_text() == f"pid {os.getpid()}\n"


@pytest.mark.parametrize("before", [None, "", "pid 4294967295, of an earlier version\n"])
def test_it_is_for_root_alone(tmp_path: Path, before: str | None) -> None:
    """Who may read a file may lock it."""
    lock = tmp_path / "node.lock"
    if before is not None:
        lock.write_text(before)
        lock.chmod(0o644)
    with take_run_directory(str(tmp_path)):
        assert lock.stat().st_mode & 0o777 == 0o600
        assert lock.read_text() == f"pid {os.getpid()}\n"


def test_no_link_is_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("words")
    (tmp_path / "node.lock").symlink_to(target)
    with pytest.raises(InvalidSettings, match=r"run_directory .*node\.lock cannot be opened"):
        take_run_directory(str(tmp_path))
    assert target.read_text() == "words"


def test_what_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(InvalidSettings, match="cannot be opened: File exists"):
        take_run_directory(str(tmp_path / "run"))


def test_nothing_is_removed_beside_a_node(tmp_path: Path) -> None:
    settings = Settings(run_directory=str(tmp_path), state_directory=str(tmp_path))
    with take_run_directory(str(tmp_path)), pytest.raises(NotReady, match=f"a node holds {tmp_path}/node.lock"):
        purge.purge_host(settings, "rack-a")
