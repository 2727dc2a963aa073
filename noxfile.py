"""The project's checks under fixed names. ``nox`` alone runs what needs no root; CI runs the same names.

Sessions install the project in an environment of their own; with ``--no-venv`` they use the one that is active
(``./quickstart test`` does that with its own).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "unit", "property"]
nox.options.reuse_existing_virtualenvs = True

NO_SKIPS = {"CALICO_NO_SKIPS": "1"}
"""For a session that somebody names: what is missing for its tests is a failure."""
PACKAGES = ("calico_core", "plugins", "tests", "noxfile.py")


def _install(session: nox.Session, *extras: str) -> None:
    if session.virtualenv.is_sandboxed:
        session.install("-e", f".[{','.join(extras)}]")


@nox.session
def lint(session: nox.Session) -> None:
    """ruff (rules and format) and the import rules."""
    _install(session, "dev")
    session.run("ruff", "check", *PACKAGES)
    session.run("ruff", "format", "--check", *PACKAGES)
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict over every package; of the tests, whether what they name is there."""
    _install(session, "dev")
    session.run("mypy")
    session.run("mypy", "--config-file", "tests/mypy.ini", "tests")


def _pytest(session: nox.Session, *folders: str) -> None:
    _install(session, "kubernetes", "node", "test")
    session.run("pytest", *folders, *session.posargs)


@nox.session
def unit(session: nox.Session) -> None:
    """No network, no root, seconds in all."""
    _pytest(session, "tests/unit")


@nox.session
def property(session: nox.Session) -> None:  # noqa: A001 - the session's name
    """Laws, by hypothesis."""
    _pytest(session, "tests/property")


@nox.session
def contract(session: nox.Session) -> None:
    """One suite an interface, against every implementation."""
    _pytest(session, "tests/contract")


@nox.session
def integration(session: nox.Session) -> None:
    """Real etcd, real namespaces, real nftables, real BIRD. Needs root."""
    _pytest(session, "tests/integration")


@nox.session
def e2e(session: nox.Session) -> None:
    """Real orchestrators and several hosts. Needs root."""
    _pytest(session, "tests/e2e")


@nox.session
def cri(session: nox.Session) -> None:
    """containerd's CRI: 200 pods, sixteen at once; ``nox -s cri -- 24`` makes fewer. Needs root."""
    pods = session.posargs[0] if session.posargs else "200"
    if len(session.posargs) > 1 or not (pods.isdigit() and int(pods)):
        session.error(f"{' '.join(session.posargs)!r} is not a number of pods")
    _install(session, "node", "test")
    session.run("pytest", "tests/e2e/cni/test_containerd.py", env={"CALICO_CRI_PODS": pods, **NO_SKIPS})


@nox.session
def kubernetes(session: nox.Session) -> None:
    """A Kubernetes of two nodes with our plugin. Needs root. ``KUBERNETES_BIN`` is the folder of its programs, built
    there by Go when they are missing (minutes). ``KUBERNETES_AWAY_S=60``: how long the API server stays away."""
    folder = os.environ.get("KUBERNETES_BIN", "")
    if not folder:
        session.error("KUBERNETES_BIN does not name the folder of the Kubernetes programs (it is built when empty)")
    builder = Path(__file__).parent / "tests" / "e2e" / "kubernetes" / "build.py"
    _install(session, "kubernetes", "node", "test")
    missing = session.run("python", str(builder), "--missing", folder, silent=True).strip()
    if missing and shutil.which("go") is None:
        session.error(f"{folder} lacks {missing}, and there is no Go to build it with")
    if missing:
        session.run("python", str(builder), folder)
    session.run("pytest", "--timeout", "600", "tests/e2e/kubernetes", *session.posargs, env=NO_SKIPS)


@nox.session
def bench(session: nox.Session) -> None:
    """``nox -s bench -- cni policy index dataplane agent throughput``: JSON lines, yardsticks with them. Needs root.
    For the options of one: ``python -m tests.benchmarks.bench_NAME --help``."""
    folder = Path(__file__).parent / "tests" / "benchmarks"
    names = session.posargs or ["cni"]
    if unknown := [name for name in names if not (folder / f"bench_{name}.py").exists()]:
        known = ", ".join(sorted(found.stem.removeprefix("bench_") for found in folder.glob("bench_*.py")))
        session.error(f"no benchmark is named {', '.join(unknown)}; there are {known}")
    _install(session, "node", "test")
    for name in names:
        session.run("python", f"tests/benchmarks/bench_{name}.py")


@nox.session
def sqlite_crash(session: nox.Session) -> None:
    """``nox -s sqlite_crash -- --kills 1000 --seed 5``: kill -9 in the middle of the SQLite driver's writes."""
    _install(session, "node", "test")
    session.run("python", "tests/campaigns/sqlite_crash.py", *session.posargs)


@nox.session
def torture(session: nox.Session) -> None:
    """``nox -s torture -- --operations 100000 --seed 5``: 32 writers killed at random, then the books."""
    _install(session, "node", "test")
    session.run("python", "-m", "tests.campaigns.torture", *session.posargs)


@nox.session
def oracle(session: nox.Session) -> None:
    """``nox -s oracle -- --cases 1000 --seed 5 --dataplane iptables``: what a naive reading, the evaluator
    and the kernel say of random policies and real packets. Needs root."""
    _install(session, "node", "test")
    session.run("python", "-m", "tests.campaigns.oracle", *session.posargs)


@nox.session
def restarts(session: nox.Session) -> None:
    """``nox -s restarts -- --count 40 --dataplane iptables``: nodes restarted, killed, upgraded and switched to the
    other dataplane under 1 kHz of traffic. Needs root."""
    _install(session, "node", "test")
    session.run("python", "-m", "tests.campaigns.restarts", *session.posargs)


@nox.session
def scale(session: nox.Session) -> None:
    """``nox -s scale``: 100,000 remote endpoints, 200 local ones, 2,000 policies, and 1,000 updates a second for a
    minute, until they are in the kernel. Needs root."""
    _install(session, "node", "test")
    session.run("python", "-m", "tests.campaigns.scale", *session.posargs)
