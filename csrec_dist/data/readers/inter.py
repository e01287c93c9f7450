"""Reader of RecBole's atomic .inter files: tabs, no quotes, a header of name:type."""

from pathlib import Path

from csrec_dist.data.columns import Layout, Scan, pick
from csrec_dist.data.readers.delimited import scan_text
from csrec_dist.data.readers.peek import first_line

TYPES = ("token", "token_seq", "float", "float_seq")


def matches(path: Path) -> bool:
    """Whether every field of the first line ends with one of the format's types."""
    names = first_line(path).split("\t")
    return len(names) > 1 and all(name.rpartition(":")[2] in TYPES for name in names)


def scan(path: Path, layout: Layout) -> Scan:
    """Columns user, item, rating and timestamp as text, in file order; a config may name them with or without type."""
    log = scan_text(path, "\t").rename(lambda name: name.rpartition(":")[0])
    plain = {role: str(name).partition(":")[0] for role, name in layout.columns.given.items()}
    return pick(log, layout.columns.model_copy(update=plain), path)
