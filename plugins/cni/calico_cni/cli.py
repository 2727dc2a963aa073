"""``calicoctl cni``: install, uninstall, status."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import click

from calico_cni import install as installer
from calico_cni.template import fill_in
from calico_core.errors import CalicoError

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_bin_dir = click.option(
    "--bin-dir", type=_DIRECTORY, default=installer.BIN_DIRECTORY, show_default=True, help="Plugin directory."
)
_conf_dir = click.option(
    "--conf-dir", type=_DIRECTORY, default=installer.CONFIG_DIRECTORY, show_default=True, help="Network list directory."
)
_conf_name = click.option("--conf-name", default=installer.CONFIG_NAME, show_default=True, help="Name of the list.")
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
@click.option(
    "--template",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="CNI_NETWORK_CONFIG_FILE",
    help="File with the list in place of ours; place-holders such as __CNI_MTU__ are filled in from the environment.",
)
@click.option(
    "--old-conf-name",
    envvar="CNI_OLD_CONF_NAME",
    default="",
    help="List of an earlier installation in the same directory, removed once ours stands.",
)
def install(
    root: Path,
    bin_dir: Path,
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
    *,
    port_mappings: bool,
) -> None:
    """Write the executables, try them, then write the network list."""
    try:
        configuration = None if template is None else fill_in(template.read_text(encoding="utf-8"), os.environ)
        written = installer.install(
            below(root, bin_dir),
            below(root, conf_dir),
            socket=socket,
            network=network,
            cni_version=cni_version,
            config_name=conf_name,
            python=python,
            interpreter=interpreter,
            shim=shim,
            has_port_mappings=port_mappings,
            configuration=configuration,
            old_config_name=old_conf_name,
        )
    except (CalicoError, OSError, UnicodeDecodeError) as error:
        raise click.ClickException(str(error)) from error
    for path in written:
        click.echo(f"wrote {path}")
    if not written:
        click.echo("everything is installed already")


@cni.command()
@_root
@_bin_dir
@_conf_dir
@_conf_name
def uninstall(root: Path, bin_dir: Path, conf_dir: Path, conf_name: str) -> None:
    """Remove the network list, then the executables."""
    try:
        removed = installer.uninstall(below(root, bin_dir), below(root, conf_dir), config_name=conf_name)
    except (CalicoError, OSError) as error:
        raise click.ClickException(str(error)) from error
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
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def status(
    context: click.Context,
    root: Path,
    bin_dir: Path,
    conf_dir: Path,
    conf_name: str,
    socket: str,
    interpreter: str | None,
    python: str | None,
    output: str,
) -> None:
    """Say what is installed and whether the node's socket is there. Status 1 when something is amiss."""
    try:
        found = installer.states(
            below(root, bin_dir),
            below(root, conf_dir),
            socket=socket,
            config_name=conf_name,
            python=python,
            interpreter=interpreter,
        )
    except (CalicoError, OSError) as error:
        raise click.ClickException(str(error)) from error
    rows = [(str(each.path), each.state) for each in found]
    rows.append((socket, "present" if _is_socket(socket) else "missing"))
    if output == "json":
        click.echo(json.dumps(dict(rows), indent=2))
    else:
        width = max(len(path) for path, _ in rows)
        for path, state in rows:
            click.echo(f"{path:<{width}}  {state}")
    if any(state not in {"current", "present"} for _, state in rows):
        context.exit(1)


def below(root: Path, path: Path) -> Path:
    """``path`` as seen from outside of ``root``."""
    return root / path.relative_to("/") if path.is_absolute() and root != Path("/") else path


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False
