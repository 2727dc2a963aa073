"""``calicoctl version``."""

from __future__ import annotations

import click

from calico_core import __version__


@click.command()
def version() -> None:
    """Print the version of this tool. Asks nobody."""
    click.echo(__version__)
