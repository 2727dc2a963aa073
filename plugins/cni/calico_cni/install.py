"""Puts the executables and the network list where a container runtime looks for them, and takes them away.

A runtime takes the appearance of the list for "the network is ready", so it is written last and removed first, and only
after the executables have proved that they run. What is secret (certificates, a kubeconfig) is for its owner to read.
Source: cni specification 7.2.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from calico_cni import compiler
from calico_cni.binaries import PROGRAMS, paths_in, place, standing_in, writable
from calico_cni.environment import NAME
from calico_cni.placed_files import is_same, write_file
from calico_cni.precompiled import executable_text
from calico_cni.programs import IPAM_PROGRAM, NETWORK_PROGRAM
from calico_cni.service_account import FILE_NAME, credentials_in
from calico_cni.tls_assets import copy_assets, remove_assets
from calico_cni.trial import reason_against
from calico_cni.versions import NEWEST, VERSIONS, is_at_least, parse_version
from calico_core import __version__
from calico_core.errors import InvalidRequest, NotReady, ToolFailed
from calico_core.trusted_directory import prepare_directory

BIN_DIRECTORY = Path("/opt/cni/bin")
CONFIG_DIRECTORY = Path("/etc/cni/net.d")
CONFIG_NAME = "10-calico.conflist"
NETWORK = "calico"
SOCKET = "/run/calico/node.sock"
RUN_DIRECTORY = "/run/calico"
LIST_VERSION = "1.0.0"
KUBECONFIG_NAME = FILE_NAME
SHIMS = ("auto", "python", "compiled")
TESTS = ("no", "warn", "require")
CONFIG_SUFFIXES = (".conflist", ".conf", ".json")

_SELF_TEST_S = 10.0
_MAX_FIRST_LINE = 250  # BINPRM_BUF_SIZE in include/uapi/linux/binfmts.h, less the option and the end of the line
_MARK = b"hands the call to the node's socket"
_MARK_WITHIN = 4 << 20  # an executable that is larger is not ours


class FileState(NamedTuple):
    """``state``: ``current``, ``outdated``, ``missing``, or ``foreign`` (not written by us, or broken)."""

    path: Path
    state: str


class Kubeconfig(NamedTuple):
    """One to be written beside the list. ``text`` is secret."""

    text: bytes
    mode: int

    def __repr__(self) -> str:
        return f"Kubeconfig(mode={self.mode:04o})"


def install(
    bin_directory: Path | Sequence[Path] = BIN_DIRECTORY,
    config_directory: Path = CONFIG_DIRECTORY,
    *,
    root: Path = Path("/"),
    socket: str = SOCKET,
    network: str = NETWORK,
    cni_version: str = LIST_VERSION,
    config_name: str = CONFIG_NAME,
    python: str | None = None,
    interpreter: str | None = None,
    shim: str = "auto",
    has_port_mappings: bool = False,
    has_bandwidth: bool = False,
    configuration: bytes | None = None,
    old_config_name: str = "",
    skipped: Collection[str] = (),
    may_update: bool = True,
    tls_assets: Path | None = None,
    kubeconfig: Kubeconfig | None = None,
    test: str = "no",
    test_wait_s: float = 10.0,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Path, ...]:
    """The files that were written; none when everything stood already.

    ``root``: where the host's file system begins, when it is not this process's own; both directories are below it.

    ``configuration``: the list's text in place of the one that ``network``, ``cni_version``, ``has_port_mappings`` and
    ``has_bandwidth`` describe. ``old_config_name``: a list of an earlier installation, removed once ours stands.

    ``shim``: ``compiled`` needs a C compiler, ``python`` none; ``auto`` is compiled where that works.

    ``python`` runs a call in process when the node is down and must have our packages: the current one by default.
    ``interpreter`` runs the executables and needs nothing but its standard library: by default the one below that.

    Of several directories those that cannot be written are left out, which ``tell`` hears; one must be left.
    ``skipped`` programs are not looked at. Without ``may_update`` the executables are somebody else's business: both
    must stand in one directory, and are tried like ours. ``tls_assets``: a directory whose files are copied.

    ``test``: whether it is tried out first that ADDs with the list will be served, for up to ``test_wait_s``; with
    ``warn`` ``tell`` hears why not, and the list is written all the same.

    Raises ``InvalidRequest`` for an unusable argument or directory, ``ToolFailed`` when the self-test fails,
    ``NotReady`` when the test that is required does; then the list is not written.
    """
    text = shim_text(socket=socket, python=python or sys.executable, interpreter=interpreter)
    if configuration is None:
        configuration = list_text(
            network, cni_version, has_port_mappings=has_port_mappings, has_bandwidth=has_bandwidth
        )
    _check_config_name(config_name)
    _check_old_name(old_config_name, config_name)
    directories = _directories(bin_directory)
    is_placed = may_update and not set(PROGRAMS) <= set(skipped)
    if is_placed:
        directories = writable(directories, tell, root=root)
    else:
        placed = standing_in(directories, skipped)
    prepare_directory(config_directory, root=root)
    if shim == "auto" and interpreter is not None:
        shim = "python"  # that is what an interpreter is for
    if is_placed:
        program = _program(shim, text, directories, socket=socket, python=python or sys.executable)
        placed = place(directories, program, skipped=skipped)
    for path in placed.standing:
        self_test(path, is_ours=is_placed)
    written = list(placed.written)
    if tls_assets is not None:
        written += copy_assets(tls_assets, config_directory, root=root)
    secret = config_directory / KUBECONFIG_NAME
    if kubeconfig is not None and write_file(secret, kubeconfig.text, kubeconfig.mode):
        written.append(secret)
    if test != "no":
        reason = reason_against(placed.standing, configuration, os.environ, wait_s=test_wait_s)
        if reason and test == "require":
            raise NotReady(f"{reason}; the list is not written")
        if reason:
            tell(f"no container would be attached now: {reason}")
    target = config_directory / config_name
    if write_file(target, configuration, 0o600):
        written.append(target)
    if old_config_name:
        (config_directory / old_config_name).unlink(missing_ok=True)
    return tuple(written)


def uninstall(
    bin_directory: Path | Sequence[Path] = BIN_DIRECTORY,
    config_directory: Path = CONFIG_DIRECTORY,
    *,
    config_name: str = CONFIG_NAME,
) -> tuple[Path, ...]:
    """The files that were removed, secrets among them. Absent is fine; what is not ours stays."""
    _check_config_name(config_name)
    removed = []
    secret = config_directory / KUBECONFIG_NAME
    ours = [path for path in paths_in(_directories(bin_directory)) if _is_ours(path)]
    if credentials_in(secret) is not None:
        ours.append(secret)
    network_list = config_directory / config_name
    for path in (*((network_list,) if _has_our_plugin(network_list) else ()), *ours):
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        removed.append(path)
    return (*removed, *remove_assets(config_directory))


def states(
    bin_directory: Path | Sequence[Path] = BIN_DIRECTORY,
    config_directory: Path = CONFIG_DIRECTORY,
    *,
    socket: str = SOCKET,
    config_name: str = CONFIG_NAME,
    python: str | None = None,
    interpreter: str | None = None,
) -> tuple[FileState, ...]:
    """What :func:`install` with the same arguments would find."""
    text = shim_text(socket=socket, python=python or sys.executable, interpreter=interpreter)
    build = compiler.build_mark(socket=socket, python=python or sys.executable)
    found = [FileState(path, _state(path, text, build)) for path in paths_in(_directories(bin_directory))]
    target = config_directory / config_name
    found.append(FileState(target, _list_state(target)))
    return tuple(found)


def shim_text(*, socket: str, python: str, interpreter: str | None = None) -> bytes:
    """The executable, its first line and constants filled in.

    The first line names the interpreter itself: a wrapper in front of it, or the ``site`` of a virtual environment,
    would cost more than the whole call.
    """
    chosen = interpreter or base_interpreter()
    for field, path in (("socket", socket), ("python", python), ("interpreter", chosen)):
        if not path.startswith("/"):
            raise InvalidRequest(field, f"{path!r} is not an absolute path")
    if any(character.isspace() for character in chosen) or len(chosen) > _MAX_FIRST_LINE:
        raise InvalidRequest("interpreter", f"the kernel cannot start {chosen!r} from a first line")
    source = importlib.resources.files("calico_cni").joinpath("shim.py").read_text()
    constants = {"SOCKET": socket, "PYTHON": python, "RUN_DIRECTORY": str(Path(socket).parent), "RELEASE": __version__}
    for name, value in constants.items():
        head, line, tail = source.partition(f"\n{name} = ")
        if not line:
            raise InvalidRequest("shim", f"has no constant {name}")
        source = f"{head}{line}{json.dumps(value)}\n{tail.partition(chr(10))[2]}"
    return executable_text(source, interpreter=chosen, name=NETWORK_PROGRAM)


def _program(shim: str, text: bytes, directories: Sequence[Path], *, socket: str, python: str) -> bytes:
    """What is to be installed under both names. A compiled one that stands already is not built again."""
    if shim not in SHIMS:
        raise InvalidRequest("shim", f"{shim!r} is not one of {', '.join(SHIMS)}")
    if shim == "python":
        return text
    build = compiler.build_mark(socket=socket, python=python)
    for path in paths_in(directories):
        if _state(path, text, build) == "current" and build in (standing := path.read_bytes()):
            return standing
    try:
        program = compiler.compile_shim(socket=socket, python=python)
        _try_out(program)
    except ToolFailed:
        if shim == "compiled":
            raise
        return text
    return program


def _try_out(program: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="calico-shim-") as folder:
        path = Path(folder, NETWORK_PROGRAM)
        write_file(path, program, 0o755)
        self_test(path)


def base_interpreter() -> str:
    """The real file of the interpreter that runs this, outside any virtual environment."""
    base: str = getattr(sys, "_base_executable", "") or sys.executable
    return os.path.realpath(base)


def list_text(network: str, cni_version: str, *, has_port_mappings: bool = False, has_bandwidth: bool = False) -> bytes:
    """The network list: our plugin, and ``portmap`` and ``bandwidth`` after it if asked for."""
    if not NAME.fullmatch(network):
        raise InvalidRequest("network", f"{network!r} may hold only letters, digits, '_', '.' and '-'")
    if not is_at_least(parse_version(cni_version, field="cni_version"), "0.3.0"):
        raise InvalidRequest("cni_version", f"lists came with 0.3.0; give one of {', '.join(VERSIONS[2:])}")
    capabilities = {"ips": True, "mac": True, "dns": True}
    plugins: list[dict[str, object]] = [
        {"type": NETWORK_PROGRAM, "ipam": {"type": IPAM_PROGRAM}, "capabilities": capabilities}
    ]
    if has_port_mappings:
        plugins.append({"type": "portmap", "snat": True, "capabilities": {"portMappings": True}})
    if has_bandwidth:
        plugins.append({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    shape = {"cniVersion": cni_version, "name": network, "plugins": plugins}
    return (json.dumps(shape, indent=2) + "\n").encode()


def self_test(path: Path, *, is_ours: bool = True) -> None:
    """Run VERSION as a runtime would. Raises ``ToolFailed``. One that is not ours may speak fewer versions."""
    argv = (str(path),)
    try:
        done = subprocess.run(
            argv,
            env={"CNI_COMMAND": "VERSION"},
            input=b'{"cniVersion":"%s"}' % NEWEST.encode(),
            capture_output=True,
            timeout=_SELF_TEST_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolFailed(argv, -1, str(error)) from error
    try:
        supported = json.loads(done.stdout)["supportedVersions"]
    except (ValueError, KeyError, TypeError):
        supported = None
    is_good = supported == list(VERSIONS) if is_ours else isinstance(supported, list) and LIST_VERSION in supported
    if done.returncode or not is_good:
        raise ToolFailed(argv, done.returncode, (done.stderr or done.stdout).decode(errors="replace"))


def _directories(given: Path | Sequence[Path]) -> tuple[Path, ...]:
    return (given,) if isinstance(given, Path) else tuple(dict.fromkeys(given))


def _check_config_name(name: str) -> None:
    if "/" in name or name.startswith(".") or not name.endswith(CONFIG_SUFFIXES[0]):
        raise InvalidRequest("config_name", f"{name!r} is not a file name that ends with {CONFIG_SUFFIXES[0]}")


def _check_old_name(name: str, config_name: str) -> None:
    if name and ("/" in name or name.startswith(".") or not name.endswith(CONFIG_SUFFIXES)):
        raise InvalidRequest("old_config_name", f"{name!r} does not end with one of {', '.join(CONFIG_SUFFIXES)}")
    if name and name == config_name:
        raise InvalidRequest("old_config_name", f"{name!r} is the list that is to be installed")


def _state(path: Path, text: bytes, build: bytes) -> str:
    if not path.exists():
        return "missing"
    if is_same(path, text, 0o755) or _is_build(path, build):
        return "current"
    return "outdated" if _is_ours(path) else "foreign"


def _list_state(path: Path) -> str:
    """What else it says is for who wrote it: a template has other keys than ours."""
    if not path.exists():
        return "missing"
    return "current" if _has_our_plugin(path) else "foreign"


def _has_our_plugin(path: Path) -> bool:
    """Whether it is a network list with a plugin of ours in it."""
    try:
        plugins = json.loads(path.read_bytes())["plugins"]
        return any(each["type"] == NETWORK_PROGRAM for each in plugins)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _is_build(path: Path, build: bytes) -> bool:
    """The compiled shim of this very source for this very place."""
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o755 and build in _head(path)


def _is_ours(path: Path) -> bool:
    return _MARK in _head(path).lower()


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MARK_WITHIN)
    except OSError:
        return b""
