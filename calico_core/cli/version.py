"""``calicoctl version``."""

from __future__ import annotations

import click

from calico_core import __version__
from calico_core.cli.context import CliContext, pass_context
from calico_core.cli.output import answer_one


@click.command()
@pass_context
def version(context: CliContext) -> None:
    """Print the version of this tool. Asks nobody."""
    answer_one(context, {"version": __version__}, __version__)
