"""Reader of RecBole's atomic .inter files: tabs, no quotes, a header of name:type."""

from dataclasses import replace
from pathlib import Path

from csrec_dist.data.columns import Layout, Scan, pick
from csrec_dist.data.parts import Part
from csrec_dist.data.readers.delimited import field_lines, scan_text
from csrec_dist.data.readers.peek import first_line
from csrec_dist.errors import UserError, quoted

TYPES = ("token", "token_seq", "float", "float_seq")


def matches(path: Path) -> bool:
    """Whether every field of the first line ends with one of the format's types."""
    names = first_line(path).split("\t")
    return len(names) > 1 and all(name.rpartition(":")[2] in TYPES for name in names)


def scan(part: Part, layout: Layout) -> Scan:
    """Columns user, item, rating and timestamp as text, in file order; a config may name them with or without type."""
    if not matches(part.text):
        raise UserError(
            f"{part.path}: its first line, {quoted(first_line(part.text))}, has no names of the form name:type between "
            "tabs, which this reader needs; leave dataset.format out, or name another reader."
        )
    log = scan_text(part, "\t").rename(lambda name: name.rpartition(":")[0])
    plain = {role: str(name).partition(":")[0] for role, name in layout.columns.given.items()}
    columns = layout.columns.model_copy(update=plain)
    return pick(log, replace(layout, columns=columns), part, lines_of=field_lines(part, "\t"))
