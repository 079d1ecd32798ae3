"""The command ``gunicorn-grace manifest``."""

from __future__ import annotations

import os
import re

import click

from ...errors import GraceError
from ..routers import ROUTERS
from .places import PLACES


@click.command()
@click.option(
    "--for",
    "place",
    type=click.Choice(list(PLACES)),
    required=True,
    help="What is printed.",
)
@click.option(
    "--router",
    type=click.Choice(list(ROUTERS)),
    help="What stands in front. The delay is as long as it goes on sending.",
)
@click.option(
    "--config",
    metavar="FILE",
    help="Your gunicorn configuration. It is read, not executed.",
)
@click.option(
    "--name", metavar="NAME", default="web", help="Name of the service, and of its container."
)
@click.option("--app", metavar="MODULE:APP", default="app:app", help="Your application.")
@click.option("--image", metavar="IMAGE", default="registry.example/web:1.0.0", help="Your image.")
def manifest(
    place: str, router: str | None, config: str | None, name: str, app: str, image: str
) -> None:
    """Print the part of a platform's configuration that fits the settings: period, signal, probes,
    hook and variables, each with the reason and its source. Settings come from the environment,
    from --config and from the defaults. What does not fit is said on standard error.

    \b
    Examples:
    gunicorn-grace manifest --for deployment --router aws-alb
    GRACE_SHUTDOWN_DELAY=15 gunicorn-grace manifest --for systemd > web.service
    """
    try:
        from ..check.configuration import read_configuration
        from .plan import Names, make_plan
        from .printing import printed
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        raise GraceError("PyYAML is missing: pip install 'gunicorn-grace[manifest]'") from None
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise GraceError(
            f"--name {name!r} is no name of a service: give lower-case letters, digits and '-', "
            "63 at most"
        )
    for option, value in (("--app", app), ("--image", image)):
        if not value or re.search(r"\s", value) or not value.isprintable():
            raise GraceError(
                f"{option} {value!r} is empty, or has a blank or a control character: give one word"
            )
    plan = make_plan(
        Names(name, app, image),
        PLACES[place],
        ROUTERS[router] if router else None,
        None if config is None else read_configuration(config),
        os.environ,
    )
    fragment = printed(plan)
    click.echo(fragment.text, nl=False)
    for line in fragment.beside:
        click.echo(line, err=True)
