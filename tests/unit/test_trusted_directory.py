"""Who could change what leads to a directory whose files run as root."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from calico_core.errors import InvalidRequest
from calico_core.trusted_directory import prepare_directory

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


def everybodys(path: Path) -> None:
    (path / "cni").mkdir(parents=True)
    (path / "cni").chmod(0o777)


def somebodys(path: Path) -> None:
    (path / "cni").mkdir(parents=True)
    os.chown(path / "cni", 1000, 0)


def somebodys_link(path: Path) -> None:
    (path / "real").mkdir(parents=True)
    (path / "cni").symlink_to("real")
    os.lchown(path / "cni", 1000, 0)


def link_into_somebodys(path: Path) -> None:
    somebodys(path / "home")
    (path / "cni").symlink_to("home/cni")


def a_file(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "cni").write_text("")


@pytest.mark.parametrize(
    ("lay_out", "named", "reason"),
    [
        (everybodys, "cni", "writable by everybody"),
        pytest.param(somebodys, "cni", "belongs to user 1000", marks=needs_root),
        pytest.param(somebodys_link, "cni", "belongs to user 1000", marks=needs_root),
        pytest.param(link_into_somebodys, "home/cni", "belongs to user 1000", marks=needs_root),
        (a_file, "cni", "is not a directory"),
    ],
)
@pytest.mark.parametrize("below", ["cni/bin", "cni/a/bin"])
def test_what_somebody_else_could_change_is_refused(
    tmp_path: Path, lay_out: Callable[[Path], None], named: str, reason: str, below: str
) -> None:
    opt = tmp_path / "opt"
    lay_out(opt)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidRequest, match=f"{opt / named} .*{reason}"):
        prepare_directory(opt / below)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is made there either"


@pytest.mark.parametrize("make", [everybodys, pytest.param(somebodys, marks=needs_root)])
def test_the_directory_itself(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    with pytest.raises(InvalidRequest, match=str(tmp_path / "cni")):
        prepare_directory(tmp_path / "cni")


def test_a_sticky_directory_may_lead_there_and_not_be_it(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    prepare_directory(shared / "cni" / "bin")
    with pytest.raises(InvalidRequest, match="writable by everybody"):
        prepare_directory(shared)


def test_a_group_that_may_write_is_trusted(tmp_path: Path) -> None:
    """As Debian's ``/usr/local``, which is of ``staff``."""
    local = tmp_path / "local"
    local.mkdir()
    local.chmod(0o2775)
    prepare_directory(local / "bin")
    prepare_directory(local)


def test_links_that_nobody_else_could_change(tmp_path: Path) -> None:
    """As ``/lib`` on hosts that have all under ``/usr``."""
    (tmp_path / "usr" / "lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "usr" / "lib" / "cni").symlink_to(tmp_path / "opt" / "cni")
    prepare_directory(tmp_path / "lib" / "cni" / "bin")
    assert (tmp_path / "opt" / "cni" / "bin").is_dir()
    (tmp_path / "opt" / "last").symlink_to("cni")
    with pytest.raises(InvalidRequest, match="give its target"):
        prepare_directory(tmp_path / "opt" / "last")


def test_links_that_lead_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InvalidRequest, match="symbolic link"):
        prepare_directory(tmp_path / "a" / "bin")


@needs_root
def test_what_is_above_the_root_of_a_host_is_not_looked_at(tmp_path: Path) -> None:
    somebodys(tmp_path)
    root = tmp_path / "cni" / "host"
    prepare_directory(root / "opt" / "cni" / "bin", root=root)
    assert (root / "opt" / "cni" / "bin").is_dir()
    with pytest.raises(InvalidRequest, match="belongs to user 1000"):
        prepare_directory(root / "opt" / "cni" / "bin")


@pytest.mark.parametrize("target", ["/opt", "../../opt"])
def test_links_out_of_the_root_of_a_host(tmp_path: Path, target: str) -> None:
    """On the host they lead elsewhere than here."""
    (tmp_path / "host" / "usr").mkdir(parents=True)
    (tmp_path / "host" / "usr" / "cni").symlink_to(target)
    with pytest.raises(InvalidRequest, match=f"leads out of {tmp_path / 'host'}"):
        prepare_directory(tmp_path / "host" / "usr" / "cni" / "bin", root=tmp_path / "host")


def test_what_is_made_is_for_its_owner_to_write_whatever_the_mask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        prepare_directory(tmp_path / "etc" / "cni" / "secret", 0o700)
    finally:
        os.umask(before)
    made = (tmp_path / "etc", tmp_path / "etc" / "cni", tmp_path / "etc" / "cni" / "secret")
    assert [stat.S_IMODE(each.stat().st_mode) for each in made] == [0o755, 0o755, 0o700]
