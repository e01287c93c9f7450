"""Formats that no reader takes, recognised so that the error can say how to convert them."""

import ast
import re
from pathlib import Path

from csrec_dist.data.readers.peek import first_line
from csrec_dist.errors import UserError, quoted

IMPRESSION = re.compile(r"\S+-[01]( \S+-[01])*")


def refuse_known_forms(path: Path) -> None:
    """Raise UserError if the file has a format that must be converted first."""
    line = first_line(path)
    reason = next((reason for is_refused, reason in FORMS if is_refused(line)), None)
    if reason is not None:
        raise UserError(f"{path} {reason} (it begins with {quoted(line)}).")


def _is_python_literal(line: str) -> bool:
    """Whether the line is a dict as some version of Python prints it."""
    if not line.startswith("{"):
        return False
    try:
        return isinstance(ast.literal_eval(line), dict)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def _is_mind(line: str) -> bool:
    """Whether the line is from MIND's behaviors.tsv: id, user, time, history, impressions with clicks."""
    values = line.split("\t")
    return len(values) == 5 and IMPRESSION.fullmatch(values[4]) is not None


FORMS = [
    (
        _is_python_literal,
        'has Python literals for lines, not JSON; convert it first, with `python -c "import ast, json, sys; '
        '[print(json.dumps(ast.literal_eval(line))) for line in sys.stdin]" < OLD > NEW.jsonl`, unzipped',
    ),
    (
        _is_mind,
        "is MIND's behaviors.tsv, a line of which holds a history and impressions rather than one interaction; write "
        "a log with a row for each click (user, item, time) and give that",
    ),
    (
        lambda line: line.lstrip().startswith("["),
        "is one JSON array; write one object a line, for instance with `jq -c '.[]' OLD > NEW.jsonl`",
    ),
    (
        lambda line: line.lstrip().startswith("{"),
        "begins like JSON, but its first line is no whole object; write one object a line, for instance with "
        "`jq -c . OLD > NEW.jsonl`",
    ),
]
