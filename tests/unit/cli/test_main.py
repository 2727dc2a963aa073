"""The tool as a whole: commands and their exit codes, options in any place, what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from calico_core import __version__, errors
from calico_core.cli.failure import Missing, Refused, exit_code, explain
from calico_core.cli.main import COMMANDS, globals_first

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.cli.conftest import Calicoctl

HEAVY = {"grpc", "pyetcd", "docker", "pyroute2", "netaddr", "stevedore", "yaml", "msgspec", "asyncio", "sqlite3"}


def test_help_imports_nothing_heavy_and_is_quick(record_property: Callable[[str, object], None]) -> None:
    script = (
        "import sys, json; sys.argv = ['calicoctl', '--help']\n"
        "from calico_core.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: print(json.dumps({'code': end.code, 'modules': sorted(sys.modules)}))"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    record_property("help_seconds", seconds)
    print(f"calicoctl --help: {seconds * 1000:.0f} ms with a fresh interpreter")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0
    assert "Usage: calicoctl" in done.stdout
    for command in COMMANDS:
        assert f"  {command} " in done.stdout
    loaded = {module.partition(".")[0] for module in found["modules"]}
    assert loaded & HEAVY == set()
    ours = {module for module in found["modules"] if module.startswith("calico_")}
    assert ours <= {"calico_core", "calico_core.cli", "calico_core.cli.main", "calico_core.errors"}


def test_version_asks_nobody(bare: Calicoctl) -> None:
    assert bare("version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(bare: Calicoctl, command: str) -> None:
    done = bare(command, "--help")
    assert done.code == 0
    assert f"Usage: calicoctl {command}" in done.out


def test_an_unknown_command_is_2_with_a_suggestion(bare: Calicoctl) -> None:
    done = bare("pol", "show")
    assert done.code == 2
    assert "'pol'" in done.err
    assert "Did you mean 'pool'" in done.err
    assert done.out == ""


def test_a_command_like_no_other_is_2_with_the_list(bare: Calicoctl) -> None:
    done = bare("zzzzzz")
    assert done.code == 2
    assert "profile" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("pool", "shw"),
        ("pool", "show", "--nonsense"),
        ("pool", "add"),
        ("pool", "show", "-o", "xml"),
        ("--debg", "version"),
    ],
)
def test_bad_command_lines_are_2(bare: Calicoctl, arguments: tuple[str, ...]) -> None:
    done = bare(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pool", "show", "-o", "json"], ["-o", "json", "pool", "show"]),
        (["pool", "show", "-ojson"], ["-ojson", "pool", "show"]),
        (["-o", "json", "pool", "show"], ["-o", "json", "pool", "show"]),
        (["pool", "--output=json", "show", "--debug"], ["--output=json", "--debug", "pool", "show"]),
        (["pool", "show", "--datastore", "sqlite:///x"], ["--datastore", "sqlite:///x", "pool", "show"]),
        (["endpoint", "show", "--host", "a"], ["endpoint", "show", "--host", "a"]),
        (["profile", "--", "-o", "json"], ["profile", "--", "-o", "json"]),
        (["pool", "show", "-o"], ["-o", "pool", "show"]),
        (["endpoint", "show", "--orchestrator", "cni"], ["endpoint", "show", "--orchestrator", "cni"]),
    ],
)
def test_options_of_the_whole_tool_move_to_the_front(arguments: list[str], expected: list[str]) -> None:
    assert globals_first(arguments) == expected


@pytest.mark.parametrize("arguments", [("-o", "json", "pool", "show"), ("pool", "show", "-o", "json")])
def test_output_before_and_after_the_command(calicoctl: Calicoctl, arguments: tuple[str, ...]) -> None:
    calicoctl.ok("pool", "add", "10.65.0.0/16")
    (row,) = calicoctl(*arguments).json
    assert row["cidr"] == "10.65.0.0/16"


def test_output_from_the_environment(calicoctl: Calicoctl, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CALICOCTL_OUTPUT", "json")
    assert calicoctl("pool", "show").json == []
    assert calicoctl.ok("pool", "show", "-o", "table").startswith("+--")
    environment.setenv("CALICOCTL_OUTPUT", "xml")
    done = calicoctl("pool", "show")
    assert done.code == 2
    assert "CALICOCTL_OUTPUT" in done.err


def test_yaml(calicoctl: Calicoctl) -> None:
    yaml = pytest.importorskip("yaml")
    calicoctl.ok("pool", "add", "10.65.0.0/16")
    (row,) = yaml.safe_load(calicoctl.ok("pool", "show", "-o", "yaml"))
    assert row["cidr"] == "10.65.0.0/16"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ToolFailed(("nft",), 1, "no"), 1),
        (errors.PluginMissing("n", "x"), 1),
        (errors.PoolExhausted(4, 1, 0, "full"), 1),
        (errors.InvalidRequest("f", "r"), 2),
        (errors.InvalidSettings("n", "o", "r"), 2),
        (errors.InvalidRecord("/k", "$.x", "r"), 2),
        (errors.Unavailable("e", "c"), 3),
        (errors.Conflict("/k", None), 3),
        (errors.Contended("x", 3), 3),
        (errors.NotReady("r"), 3),
        (errors.DaemonDown("s", "r"), 3),
        (errors.KeyMissing("/k"), 4),
        (errors.NotAssigned("x"), 4),
        (Missing("pool", "x"), 4),
        (errors.KeyExists("/k", None), 5),
        (errors.AddressInUse("a", "h"), 5),
        (errors.AffinityHeld("b", "o"), 5),
        (errors.StaleRelease("a", "x", "y"), 5),
        (errors.InterfaceTaken("i", "w"), 5),
        (errors.RouteTaken("d", "o"), 5),
        (Refused("no"), 5),
    ],
)
def test_exit_codes(error: errors.CalicoError, code: int) -> None:
    assert exit_code(error) == code
    first, *rest = explain(error)
    assert first == f"calicoctl: {error}"
    assert len(rest) <= 1


def test_an_unreachable_store_is_3_and_named(bare: Calicoctl) -> None:
    done = bare("--datastore", "etcd3://127.0.0.1:1", "pool", "show")
    assert done.code == 3
    assert "127.0.0.1:1" in done.err
    assert "--datastore" in done.err


def test_a_driver_that_is_not_there_is_named(bare: Calicoctl) -> None:
    done = bare("--datastore", "redis://h", "pool", "show")
    assert done.code == 2
    assert "setting datastore (from --datastore): no driver 'redis' is installed; there are etcd3, memory" in done.err
    done = bare("datastore", "migrate", "--from", "nowhere", "--to", "sqlite:///x")
    assert (done.code, "(from --from)" in done.err) == (2, True)


def test_a_bad_setting_is_2_only_where_it_is_needed(bare: Calicoctl, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("CALICO_MTU", "big")
    done = bare("pool", "show")
    assert done.code == 2
    assert "mtu_bytes" in done.err
    assert bare("version").code == 0
    assert bare("pool", "--help").code == 0
