"""Where ``calicoctl datastore`` writes to and reads from."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tests.unit.cli.conftest import Calicoctl


def test_a_link_leads_to_the_file(calicoctl: Calicoctl, tmp_path: Path) -> None:
    target, link = tmp_path / "kept.jsonl", tmp_path / "link.jsonl"
    target.write_text("old")
    link.symlink_to(target)
    calicoctl.ok("datastore", "export", "-f", str(link))
    assert link.is_symlink()
    assert target.read_text() != "old"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_device_stays_one(calicoctl: Calicoctl, tmp_path: Path) -> None:
    device = tmp_path / "null"
    os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    calicoctl.ok("datastore", "export", "-f", str(device))
    assert stat.S_ISCHR(device.stat().st_mode)


def test_what_cannot_be_read(calicoctl: Calicoctl, tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"\xff")
    for name, code, says in (("odd", 2, "not UTF-8"), (".", 1, "Is a directory"), ("none", 4, "there is no file")):
        done = calicoctl("datastore", "import", "-f", f"{tmp_path}/{name}")
        assert (done.code, says in done.err) == (code, True), done


def test_links_in_a_circle(calicoctl: Calicoctl, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    done = calicoctl("datastore", "export", "-f", f"{tmp_path}/a")
    assert (done.code, "cannot be written" in done.err) == (5, True)
