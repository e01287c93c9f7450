"""Formats that no reader takes, recognised so that the error can say how to convert them."""

import ast
import re
from pathlib import Path

from csrec_dist.data.readers.peek import first_line
from csrec_dist.errors import UserError, quoted

NEWS = re.compile(r"N\d+( N\d+)*")


def refuse_known_forms(path: Path, encoding: str | None) -> None:
    """Raise UserError if the file has a format that must be converted first, or an encoding that must be named."""
    line = first_line(path)
    if encoding is None and re.search(r"\w\0\w\0", line):
        raise UserError(
            f"{path} has a zero byte beside each character, as UTF-16 does; name it with dataset.encoding: utf-16, or "
            f"utf-16-le where the file has no mark at its beginning (it begins with {quoted(line)})."
        )
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


def _is_mind_without_clicks(line: str) -> bool:
    """Whether the line is from the behaviors.tsv of MIND's test set: id, user, time, history, what was shown."""
    values = line.split("\t")
    return len(values) == 5 and NEWS.fullmatch(values[4]) is not None


FORMS = [
    (
        _is_python_literal,
        'has Python literals for lines, not JSON; convert it first, with `python -c "import ast, json, sys; '
        '[print(json.dumps(ast.literal_eval(line))) for line in sys.stdin]" < OLD > NEW.jsonl`, unzipped',
    ),
    (
        _is_mind_without_clicks,
        "is the behaviors.tsv of MIND's test set, which does not say what was clicked; give that of the training or "
        "the validation set",
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
