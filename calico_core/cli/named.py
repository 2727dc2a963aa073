"""Commands that take a name before their verb: ``profile NAME rule add …`` beside ``profile add NAME``.

Word 2 is a form word of the group (``tag``, ``rule``) and word 3 one of its verbs: then word 1 is a name, even if it
reads like a verb. Source: calicoctl specification 5.4.
"""

from __future__ import annotations

import click


class NamedGroup(click.Group):
    """``forms``: sub-groups reached as GROUP NAME FORM VERB. The name arrives in ``ctx.meta['name']``."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.forms: dict[str, click.Group] = {}

    def add_form(self, form: click.Group) -> click.Group:
        assert form.name is not None
        self.forms[form.name] = form
        return form

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if len(args) >= 2 and args[1] in self.forms:
            form = self.forms[args[1]]
            is_verb = len(args) > 2 and args[2] in form.commands
            if is_verb or args[0] not in self.commands:
                ctx.meta["name"] = args[0]
                return form.name, form, args[2:]
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            known = f"Known: {', '.join(sorted(self.commands))}"
            raise click.UsageError(f"{args[0]!r} is no command. {known}; after a name: {', '.join(self.forms)}.", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_commands(ctx, formatter)
        rows = [
            (f"NAME {form.name} {verb}", command.get_short_help_str())
            for form in self.forms.values()
            for verb, command in sorted(form.commands.items())
        ]
        if rows:
            with formatter.section("Commands about one"):
                formatter.write_dl(rows)


def name_of(ctx: click.Context) -> str:
    name = ctx.meta["name"]
    assert isinstance(name, str)
    return name
