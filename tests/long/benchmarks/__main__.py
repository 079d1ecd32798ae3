"""The project's figures, measured: ``python tests/long/benchmarks`` (or ``tox -e bench``).

Each benchmark prints its table and writes what it found into ``docs/reference/benchmarks.json``, in
place of what stood there. The page of the figures is rendered from that file. What is compared is
measured in turns, so that a slow minute of the machine slows both. No number here decides over a
test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[2]))

import balancers
import costs
import one_host
import probing
import quiet
import rehearsing
import shutdowns
import weights

from support.figures import BENCHMARKS, FILE, Row, machine, record, table

FIGURES: dict[str, Callable[[], list[Row]]] = {
    "cpu": costs.cpu,
    "instructions": costs.instructions,
    "probe": costs.probe,
    "memory": weights.memory,
    "flip": shutdowns.flip,
    "exit": shutdowns.exits,
    "idle": shutdowns.idle,
    "probe-port": probing.probe_port,
    "rehearsals": rehearsing.rehearsals,
    "load": rehearsing.load,
}
"""The benchmarks whose figures are on the page."""
assert FIGURES.keys() == BENCHMARKS.keys()

BRIEF: dict[str, Callable[[], list[Row]]] = {
    "cpu": lambda: [costs.compare(next(costs.cases()), 1, 1, 20)],
    "instructions": lambda: costs.instructions(1, 2, [next(costs.cases())]),
    "probe": lambda: costs.probe(100, 2),
    "memory": lambda: weights.memory(1, ["sync"]),
    "flip": lambda: shutdowns.flip(1, [2]),
    "exit": lambda: shutdowns.exits(1, ["gthread"]),
    "idle": lambda: shutdowns.idle(1, ["gthread"]),
    "probe-port": lambda: probing.probe_port(1, 20),
    "rehearsals": lambda: [*rehearsing.scaled_down(2, 1)],
    "load": lambda: rehearsing.load(1, 100, 2),
}
"""One round of one case each."""


def quiet_test() -> None:
    """How often the quiet test is wrong, simulated: about two minutes."""
    if not quiet.show(1_000_000, seed=1):
        sys.exit(1)


PRINTED: dict[str, Callable[[], None]] = {
    "quiet": quiet_test,
    "balancers": balancers.show,
    "one-host": one_host.show,
}
"""The others print the table of another page."""


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*FIGURES, *PRINTED]))
@click.option(
    "--to",
    type=click.Path(dir_okay=False, path_type=Path),
    default=FILE,
    help="The file for the figures.",
)
@click.option("--brief", is_flag=True, help="One round of one case, to see that it works.")
def main(names: Sequence[str], to: Path, brief: bool) -> None:
    """Measure all, or what is named."""
    if brief and to == FILE:
        raise click.UsageError("--brief measures too little for the page: give --to another file")
    for name in names or [*FIGURES, *PRINTED]:
        if name in PRINTED:
            PRINTED[name]()
            continue
        seen = machine()
        record(name, (BRIEF if brief else FIGURES)[name](), seen, to)
        click.echo(f"{name}\n\n{table(name, to)}\n")


if __name__ == "__main__":
    main()
