"""``calicoctl mesos``: install, uninstall."""

from __future__ import annotations

from pathlib import Path

import click

from calico_mesos import install as installer

_bin_dir = click.option(
    "--bin-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=installer.BIN_DIRECTORY,
    show_default=True,
    help="Where the configuration of the agent's network module looks for the program.",
)


@click.group()
def mesos() -> None:
    """The program that a Mesos agent's network module runs."""


@mesos.command()
@_bin_dir
@click.option(
    "--socket", envvar="CALICO_SOCKET", default=installer.SOCKET, show_default=True, help="The node's socket."
)
@click.option("--python", help="Interpreter with Calico, for requests while the node is down. [default: this one]")
def install(bin_dir: Path, socket: str, python: str | None) -> None:
    """Write the program, try it, and write a sample of the module's configuration."""
    written = installer.install(bin_dir.absolute(), socket=socket, python=python)
    for path in written:
        click.echo(f"wrote {path}")
    if not written:
        click.echo("everything is installed already")


@mesos.command()
@_bin_dir
def uninstall(bin_dir: Path) -> None:
    """Remove the program and the sample."""
    removed = installer.uninstall(bin_dir.absolute())
    for path in removed:
        click.echo(f"removed {path}")
    if not removed:
        click.echo("nothing is installed")
