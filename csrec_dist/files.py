"""Files and folders that appear whole or not at all; fingerprints of values, and how they differ."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csrec_dist.errors import UserError, shortened
from csrec_dist.storage import FAILURES, explained
from csrec_dist.writers import temporary_sibling

LONGEST_PATH = 200
"""Characters of a path that a message shows."""
CHECKSUM = "checksum"
"""The key of a record's checksum."""
CHECKSUM_FORM = re.compile("sha256:[0-9a-f]{64}")
_SOUND: set[tuple[Any, ...]] = set()
"""The files whose checksums this process has compared."""


@contextmanager
def atomic_path(path: Path | str, num_bytes: int | None = None) -> Iterator[Path]:
    """Yield the path of a new empty file beside `path`; on success its content is synced and renamed to `path`.

    A reader therefore sees the old file, the new file or none, never a part of one. The file's mode is what the umask
    leaves; it is opened by nobody else's name or link, since its own name cannot be guessed. `num_bytes` is its size
    where that is known before.

    Raises:
        StorageError: the disk is full, failing or read-only.
        UserError: what stands at `path` is a folder, a device or another special file, or its parent takes no files.
    """
    path = Path(path)
    require_replaceable(path)
    make_folder(path.parent)
    temporary = temporary_sibling(path)
    with explained(path, num_bytes):
        with _refusals_said(path):
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        try:
            yield temporary
            _sync(temporary)  # before the rename: a machine that fails after it would otherwise have an empty file
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def require_replaceable(path: Path) -> None:
    """UserError if something stands at `path` that no file may replace: a folder, a device, a pipe."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file to write, like {path / 'file'}.")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a device or another special file, which is not replaced; name a regular file.")


def make_folder(path: Path) -> None:
    """Make a folder and those around it, unless they are there; UserError where that is not possible."""
    try:
        with explained(path):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be a folder to write into: {error.strerror}. Name another one.") from None


@contextmanager
def _refusals_said(path: Path) -> Iterator[None]:
    """What a folder that takes no new files answers, such as /proc, or one where a name may not be so long."""
    try:
        yield
    except PermissionError:
        raise  # the command line says whom to ask
    except OSError as error:
        if error.errno in FAILURES:
            raise
        raise UserError(
            f"{shortened(str(path), LONGEST_PATH)} cannot be written: {error.strerror}. Name another path."
        ) from None


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_record(path: Path | str, value: Mapping[str, Any]) -> None:
    """Write a JSON object to `path` atomically, with the checksum of its content, which `read_json` compares."""
    write_json(path, {**value, CHECKSUM: checksum(value)})


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError when it is none, or nested more deeply than Python follows."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_record(text: str | bytes) -> Any:
    """The value of a JSON text without its checksum, where it has one; ValueError where that is another's.

    A checksum under another key is one whose key was damaged.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        return value
    keys = {key for key, each in value.items() if isinstance(each, str) and CHECKSUM_FORM.fullmatch(each)}
    if CHECKSUM in value or keys:
        stored = value.pop(CHECKSUM, None)
        if stored != checksum(value):
            raise ValueError("its content does not have the checksum that it was written with")
    return value


def read_json(path: Path | str) -> Any:
    """Read JSON, without its checksum where it has one; UserError when it is absent, unreadable or damaged."""
    text = read_text(path, "The file")
    try:
        parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    try:
        return parse_record(text)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}. Take it back from a copy, or do again what wrote it; of a run, "
            "`csrec-dist verify` says which stage that is."
        ) from None


def read_text(path: Path | str, what: str) -> str:
    """The text of a file that a user names, which `what` says in messages; UserError when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist.") from None
    except PermissionError:
        raise  # the command line says whom to ask
    except OSError as error:
        raise UserError(f"{what} {shortened(str(path), LONGEST_PATH)} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} cannot be read: it is not UTF-8 text ({error}).") from None
    except ValueError as error:  # a path with a null byte
        raise UserError(f"{what} {str(path)!r} cannot be read: {error}.") from None


def exists(path: Path) -> bool:
    """Whether there is something at a path that a user names; UserError where the system cannot tell."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise  # the command line says whom to ask
    except OSError as error:
        raise UserError(f"{shortened(str(path), LONGEST_PATH)} cannot be looked at: {error.strerror}.") from None
    except ValueError as error:  # a null byte
        raise UserError(f"{str(path)!r} is no path: {error}.") from None
    return True


def check_cover(what: str, ranges: Iterable[tuple[int, int]], start: int, count: int) -> None:
    """ValueError unless the ranges (first, number), in this order, make up start … start + count − 1."""
    end = start
    for first, size in ranges:
        if first != end:
            kind = "a gap" if first > end else "an overlap"
            raise ValueError(f"the files' {what} have {kind}: a file starts at {first}, the one before ends at {end}")
        end += size
    if end != start + count:
        raise ValueError(f"the files hold {end - start} {what}, not {count}")


def sha256_file(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits; UserError for a folder."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, where a file is needed: take the file back from a copy.") from None


def parquet_checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each Parquet file in a folder, by name."""
    return {path.name: sha256_file(path) for path in sorted(folder.glob("*.parquet"))}


def has_checksum(path: Path | str, sha256: str, compute: Callable[[Path | str], str] | None = None) -> bool:
    """Whether a file has this SHA-256, or what `compute` makes of it.

    A process that asks again reads only a file that was changed meanwhile.
    """
    status = os.stat(path)
    seen = (os.path.realpath(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, sha256)
    if seen not in _SOUND:
        if (compute or sha256_file)(path) != sha256:
            return False
        _SOUND.add(seen)
    return True


def checksum(value: Any) -> str:
    """The SHA-256 of a JSON value, as it stands in records: it does not depend on the order of the keys."""
    as_read = json.loads(json.dumps(value))  # its keys are text then, which sorts otherwise than numbers
    canonical = json.dumps(as_read, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that depend on a JSON value only, not on the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return flat


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys of flat inputs that have another value now, or that one of both lacks; true is another one than 1."""
    return [key for key in sorted(before.keys() | now.keys()) if not _are_same(before.get(key), now.get(key))]


def _are_same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_are_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The changed keys with both values, in a few words each; a key that one of both lacks has none there."""
    none = "not there"
    shown = [{key: repr(value) for key, value in values.items()} for values in (before, now)]
    return [f"{key} was {shown[0].get(key, none)}, is {shown[1].get(key, none)}" for key in changed_keys(before, now)]


def link(path: Path, target: Path) -> None:
    """Make `path` a relative link to `target`, unless there is something already; a broken link is replaced."""
    make_folder(path.parent)
    if not path.exists():
        path.unlink(missing_ok=True)
        path.symlink_to(os.path.relpath(target.resolve(), path.parent.resolve()))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a hidden sibling that becomes `folder` at the end; it is removed if anything fails."""
    new = temporary_sibling(folder)
    make_folder(folder.parent)
    with explained(folder):
        with _refusals_said(folder):
            new.mkdir()
        try:
            yield new
            for file in [*new.rglob("*"), new]:
                _sync(file)
            os.replace(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the system write a file or folder of this process to the disk; no link of anybody else is followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
