"""The executable, as a supervisor starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from calico_core import __version__


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "calico_core.node.main", *arguments],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, __version__, "")


def test_check_config_shows_values_with_their_origin_and_no_secret() -> None:
    limits = {"FELIX_HEALTHTIMEOUTOVERRIDES": "engine=3m, routing=20"}
    done = run("check-config", NODENAME="rack-a", ETCD_PASSWORD="hunter2", ETCD_AUTHORITY="e:2379", **limits)
    assert done.returncode == 0
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    assert lines["node_name"] == ["node_name", "rack-a", "environment", "NODENAME"]
    assert lines["datastore"] == ["datastore", "etcd3://e:2379", "environment", "ETCD_AUTHORITY"]
    assert lines["dataplane_driver"] == ["dataplane_driver", "auto", "default"]
    assert lines["etcd_password"][1] == "(set)"
    assert lines["loop_limits"][1] == "engine=180s,routing=20s"
    assert "hunter2" not in done.stdout


@pytest.mark.parametrize("command", ["check-config", "run"])
def test_a_bad_setting_is_exit_2_and_named(command: str) -> None:
    done = run(command, CALICO_MTU="big")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "mtu_bytes" in line
    assert "CALICO_MTU" in line
    assert "'big'" in line


def test_a_log_that_cannot_be_written_is_exit_2_and_named(tmp_path: Path) -> None:
    done = run("run", FELIX_LOGFILEPATH=str(tmp_path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "log_file" in line
    assert f"{tmp_path} cannot be written: Is a directory" in line


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), ([], 0), (["start"], 2), (["run", "now"], 2), (["check-config", "x"], 2)]
)
def test_usage(arguments: list[str], code: int) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert "Usage: calico-node" in done.stdout


def test_a_node_without_a_usable_driver_says_so(tmp_path: object) -> None:
    done = run(
        "run",
        CALICO_DATAPLANE_DRIVER="abacus",
        CALICO_RUN_DIRECTORY=f"{tmp_path}/run",
        CALICO_STATE_DIRECTORY=f"{tmp_path}/state",
        CALICO_DATASTORE=f"sqlite://{tmp_path}/calico.db",
        IP="192.0.2.1",
    )
    assert done.returncode == 2
    named = "setting dataplane_driver (from environment CALICO_DATAPLANE_DRIVER): no driver 'abacus' is installed"
    assert named in done.stderr
    assert "nftables" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("setting", ["CALICO_DATASTORE", "CALICO_DATAPLANE_DRIVER", "CALICO_ROUTING_DRIVER"])
def test_a_driver_that_is_not_there_is_found_before_a_start(setting: str) -> None:
    done = run("check-config", **{setting: "abacus://x" if setting == "CALICO_DATASTORE" else "abacus"})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"(from environment {setting}): no driver 'abacus' is installed; there are " in line
