"""Printing tables: as wide as they are in a file or a pipe, and never so narrow that a figure is cut."""

from rich.console import Console
from rich.table import Table

UNBOUNDED = 10_000
"""Columns of a console that breaks no line."""


def table_console(*tables: Table) -> Console:
    """A console for these tables.

    In a file or a pipe it is as wide as the widest of them; in a terminal as wide as the terminal, or as they need at
    least: a terminal breaks their lines then rather than have figures cut.
    """
    console, wide = Console(), Console(width=UNBOUNDED)
    needs = [wide.measure(table) for table in tables]
    if console.is_terminal:
        return Console(width=max([console.width, *(need.minimum for need in needs)]))
    return Console(width=max([console.width, *(need.maximum for need in needs)]))


def print_tables(*tables: Table) -> None:
    """Print tables to the standard output."""
    console = table_console(*tables)
    for table in tables:
        console.print(table)
