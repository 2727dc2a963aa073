"""``calicoctl cni``: install, uninstall, status."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import click

from calico_cni import install as installer
from calico_cni.host_local import DIRECTORY as HOST_LOCAL_DIRECTORY
from calico_cni.other_mtus import other_mtus
from calico_cni.programs import IPAM_PROGRAM
from calico_cni.service_account import (
    ACCOUNT_DIRECTORY,
    MODE,
    credentials_in,
    file_mode,
    has_account,
    is_insecure,
    kubeconfig_text,
)
from calico_cni.template import fill_in
from calico_cni.tls_assets import named_assets
from calico_core.errors import InvalidRequest

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_bin_dir = click.option(
    "--bin-dir",
    "bin_dirs",
    type=_DIRECTORY,
    multiple=True,
    default=(installer.BIN_DIRECTORY,),
    show_default=True,
    help="Plugin directory; of several, those that cannot be written are left out.",
)
_conf_dir = click.option(
    "--conf-dir",
    type=_DIRECTORY,
    envvar="CNI_NET_DIR",
    default=installer.CONFIG_DIRECTORY,
    show_default=True,
    help="Network list directory.",
)
_conf_name = click.option(
    "--conf-name", envvar="CNI_CONF_NAME", default=installer.CONFIG_NAME, show_default=True, help="Name of the list."
)
_socket = click.option(
    "--socket", envvar="CALICO_SOCKET", default=installer.SOCKET, show_default=True, help="The node's socket."
)
_python = click.option("--python", help="Python with Calico, for calls while the node is down.  [default: this one]")
_interpreter = click.option("--interpreter", help="Python that runs the executables.  [default: this one]")
_root = click.option(
    "--root",
    type=_DIRECTORY,
    default=Path("/"),
    show_default=True,
    help="The host's file system, where it is mounted; both directories are below it.",
)


@click.group()
def cni() -> None:
    """The CNI plugin of this host: for containerd, podman, kubelet and others."""


@cni.command()
@_root
@_bin_dir
@_conf_dir
@_conf_name
@_socket
@_interpreter
@_python
@click.option("--network", default=installer.NETWORK, show_default=True, help="Name of the network and its profile.")
@click.option("--cni-version", default=installer.LIST_VERSION, show_default=True, help="Version of the list.")
@click.option(
    "--shim",
    type=click.Choice(installer.SHIMS),
    default="auto",
    show_default=True,
    help="Executables in Python or compiled here; auto: compiled where there is a C compiler.",
)
@click.option("--port-mappings", is_flag=True, help="Chain the portmap plugin for published ports.")
@click.option("--bandwidth", is_flag=True, help="Chain the bandwidth plugin for limits of rates.")
@click.option(
    "--template",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="CNI_NETWORK_CONFIG_FILE",
    help="File with the list in place of ours (the variable CNI_NETWORK_CONFIG holds its text); place-holders such as "
    "__CNI_MTU__ are filled in from the environment.",
)
@click.option(
    "--skip",
    "skipped",
    envvar="SKIP_CNI_BINARIES",
    default="",
    help="Executables, with commas between them, that are left as they are.",
)
@click.option(
    "--update/--no-update",
    envvar="UPDATE_CNI_BINARIES",
    default=True,
    show_default=True,
    help="Whether executables are written; if not, both must be there.",
)
@click.option(
    "--tls-assets",
    type=_DIRECTORY,
    envvar="TLS_ASSETS_DIR",
    help="Directory with certificates and keys, copied to calico-tls beside the list.",
)
@click.option(
    "--service-account",
    type=_DIRECTORY,
    default=ACCOUNT_DIRECTORY,
    show_default=True,
    help="Where the pod's service account is; where there is a token, calico-kubeconfig is written beside the list.",
)
@click.option(
    "--old-conf-name",
    envvar="CNI_OLD_CONF_NAME",
    default="",
    help="List of an earlier installation in the same directory, removed once ours stands.",
)
@click.option(
    "--test",
    type=click.Choice(installer.TESTS),
    envvar="CNI_INSTALL_TEST",
    default="no",
    show_default=True,
    help="Try out (calico -t) whether containers would be attached, before the list is written. If not, warn writes it "
    "all the same and require does not.",
)
@click.option(
    "--test-wait",
    type=click.FloatRange(0, 3600),
    envvar="CNI_INSTALL_TEST_WAIT",
    default=10.0,
    show_default=True,
    help="Seconds that the test may take to succeed.",
)
def install(
    root: Path,
    bin_dirs: tuple[Path, ...],
    conf_dir: Path,
    conf_name: str,
    socket: str,
    interpreter: str | None,
    python: str | None,
    network: str,
    cni_version: str,
    shim: str,
    template: Path | None,
    old_conf_name: str,
    skipped: str,
    tls_assets: Path | None,
    service_account: Path,
    test: str,
    test_wait: float,
    *,
    port_mappings: bool,
    bandwidth: bool,
    update: bool,
) -> None:
    """Write the executables, try them, then write the network list."""
    try:
        written = installer.install(
            [below(root, each) for each in bin_dirs],
            below(root, conf_dir),
            root=root,
            socket=socket,
            network=network,
            cni_version=cni_version,
            config_name=conf_name,
            python=python,
            interpreter=interpreter,
            shim=shim,
            has_port_mappings=port_mappings,
            has_bandwidth=bandwidth,
            configuration=_configuration(template, conf_dir, tls_assets),
            old_config_name=old_conf_name,
            skipped=[each.strip() for each in skipped.split(",")],
            may_update=update,
            tls_assets=tls_assets,
            kubeconfig=_kubeconfig(service_account),
            test=test,
            test_wait_s=test_wait,
            tell=_warn,
        )
    except UnicodeDecodeError as error:
        raise InvalidRequest("--template", f"is not UTF-8 text: {error}") from error
    for path in written:
        click.echo(f"wrote {path}")
    if not written:
        click.echo("everything is installed already")


@cni.command()
@_root
@_bin_dir
@_conf_dir
@_conf_name
def uninstall(root: Path, bin_dirs: tuple[Path, ...], conf_dir: Path, conf_name: str) -> None:
    """Remove the network list, then the executables and what is secret."""
    removed = installer.uninstall(
        [below(root, each) for each in bin_dirs], below(root, conf_dir), config_name=conf_name
    )
    for path in removed:
        click.echo(f"removed {path}")
    if not removed:
        click.echo("nothing is installed")


@cni.command()
@_root
@_bin_dir
@_conf_dir
@_conf_name
@_socket
@_interpreter
@_python
@click.pass_context
def status(
    context: click.Context,
    root: Path,
    bin_dirs: tuple[Path, ...],
    conf_dir: Path,
    conf_name: str,
    socket: str,
    interpreter: str | None,
    python: str | None,
) -> None:
    """Say what is installed, how old its credentials are, whether the node's socket is there, and which interfaces have
    another MTU than a container attached now would get. Status 1 when something is amiss; such interfaces are not: each
    keeps its MTU until its container is made anew."""
    found = installer.states(
        [below(root, each) for each in bin_dirs],
        below(root, conf_dir),
        socket=socket,
        config_name=conf_name,
        python=python,
        interpreter=interpreter,
    )
    rows = [(str(each.path), each.state) for each in found]
    rows.append((socket, "present" if _is_socket(socket) else "missing"))
    secret = below(root, conf_dir) / installer.KUBECONFIG_NAME
    credentials = credentials_in(secret)
    ages = {}
    if credentials is not None:
        rows.append((str(secret), "expired" if credentials.is_expired else "current"))
        left_s = None if credentials.left_s is None else round(credentials.left_s)
        ages[str(secret)] = {"age_s": round(credentials.age_s), "left_s": left_s}
    tool = context.find_root().obj
    differing = other_mtus(tool, below(root, Path(socket)), below(root, conf_dir) / conf_name)
    width = max(len(path) for path, _ in rows)
    lines = [f"{path:<{width}}  {state}{_age_text(ages[path]) if path in ages else ''}" for path, state in rows]
    lines += [
        f"{each['interface']:<{width}}  MTU {each['mtu_bytes']}, {each['would_be_bytes']} if attached now "
        f"({each['endpoint']})"
        for each in differing
    ]
    tool.answer_one(
        {**dict(rows), **({"credentials": ages} if ages else {}), "other_mtus": differing}, "\n".join(lines)
    )
    if any(state not in {"current", "present"} for _, state in rows):
        context.exit(1)


@cni.command("upgrade-ipam")
@click.option("--node", envvar="KUBERNETES_NODE_NAME", required=True, help="The node that runs on this host.")
@click.option(
    "--directory",
    type=_DIRECTORY,
    envvar="CALICO_HOST_LOCAL_DIRECTORY",
    default=HOST_LOCAL_DIRECTORY,
    show_default=True,
    help="Where host-local keeps the addresses of the network.",
)
@click.option(
    "--run-directory",
    type=_DIRECTORY,
    envvar="CALICO_RUN_DIRECTORY",
    default=installer.RUN_DIRECTORY,
    show_default=True,
    help="Of the node, with the settings that it was last started with.",
)
def upgrade_ipam(node: str, directory: Path, run_directory: Path) -> None:
    """Move the addresses that host-local gave on this host to calico-ipam.

    As calico-ipam -upgrade does, in a container that has Calico and not its executables.
    """
    named = {"KUBERNETES_NODE_NAME": node, "CALICO_HOST_LOCAL_DIRECTORY": str(directory)}
    argv = [sys.executable, "-I", "-m", "calico_core.node.oneshot", str(run_directory), IPAM_PROGRAM]
    environment = {**os.environ, **named, "CNI_COMMAND": "UPGRADE"}
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    text = done.stdout.decode(errors="replace")
    if done.returncode:
        raise click.ClickException(_message(text) or f"the process ended with status {done.returncode}")
    click.echo(text, nl=False)


def below(root: Path, path: Path) -> Path:
    """``path`` as seen from outside of ``root``."""
    return root / path.relative_to("/") if path.is_absolute() and root != Path("/") else path


def _configuration(template: Path | None, conf_dir: Path, tls_assets: Path | None) -> bytes | None:
    """The list in place of ours. A file goes before the variable. Paths in it are those of the host."""
    text = os.environ.get("CNI_NETWORK_CONFIG", "") if template is None else template.read_text(encoding="utf-8")
    if not text:
        return None
    named = {"KUBECONFIG_FILEPATH": str(conf_dir / installer.KUBECONFIG_NAME)}
    if tls_assets is not None:
        named |= named_assets(tls_assets, conf_dir)
    return fill_in(text, {**named, **{name: value for name, value in os.environ.items() if value}})


def _kubeconfig(service_account: Path) -> installer.Kubeconfig | None:
    if not has_account(service_account):
        return None
    if is_insecure(os.environ):
        _warn("SKIP_TLS_VERIFY: whoever answers at the API's address is believed, and gets the token")
    mode = file_mode(os.environ.get("KUBECONFIG_MODE", "") or MODE)
    return installer.Kubeconfig(kubeconfig_text(os.environ, service_account), mode)


def _message(text: str) -> str:
    """Of an error object."""
    try:
        error = json.loads(text)
        return "\n".join(filter(None, (error["msg"], error.get("details", ""))))
    except (ValueError, KeyError, TypeError, AttributeError):
        return text.strip()


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


def _age_text(age: dict[str, int | None]) -> str:
    left_s = age["left_s"]
    end = "" if left_s is None else f", {'expired' if left_s <= 0 else 'valid for'} {_duration(abs(left_s))}"
    return f" (written {_duration(age['age_s'] or 0)} ago{end}{' ago' if left_s is not None and left_s <= 0 else ''})"


def _duration(seconds: int) -> str:
    """In the largest unit that says something."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False
