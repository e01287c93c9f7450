"""Writers of logs in the forms of the table in docs/formats.md, by what stands in its first column.

Each writes the same interactions as somebody else's log would have them, and says what a reader should give back.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa


class Interaction(NamedTuple):
    """What a user did; `time` is in seconds since 1970."""

    user: int
    item: int
    time: int
    rating: int
    event: str


class Row(NamedTuple):
    """What a reader gives: raw ids, the rating, and the time in seconds since 1970 or None for an order."""

    user: Any
    item: Any
    rating: float | None
    time: float | None


SAMPLE = [
    Interaction(user, 10 + (3 * user + 7 * place) % 11, 1_400_000_000 + 86_400 * ((5 * place) % 8) + 61 * user,
                1 + (user + place) % 5, ("view", "buy", "view")[place % 3])
    for place in range(8)
    for user in (3, 1, 2, 4)
    if place < 8 - user % 3
]  # fmt: skip
Writer = Callable[[Path, Sequence[Interaction]], None]


@dataclass(frozen=True)
class Form:
    """How a log is written, and what becomes of an interaction; times are whole multiples of `resolution` seconds."""

    write: Writer
    ids: Callable[[int, int], tuple[Any, Any]] = lambda user, item: (user, item)
    has_rating: bool = False
    resolution: int | None = 1  # None: the log has no times
    keeps: Callable[[Interaction], bool] = lambda interaction: True
    reader: str = "delimited"
    split: Callable[[Sequence[Interaction]], Sequence[Sequence[Interaction]]] = lambda interactions: (interactions,)

    def rows(self, interactions: Sequence[Interaction]) -> dict[Any, list[Row]]:
        """Each user's rows by the file they are in, and then in the order of time, ties in that of the file."""
        expected: dict[Any, list[Row]] = {}
        files = [sorted(filter(self.keeps, file), key=self._time) for file in self.split(interactions)]
        for each in chain.from_iterable(files):
            user, item = self.ids(each.user, each.item)
            time = None if self.resolution is None else float(self._time(each))
            expected.setdefault(user, []).append(Row(user, item, each.rating if self.has_rating else None, time))
        return expected

    def _time(self, interaction: Interaction) -> int:
        resolution = self.resolution or 1
        return interaction.time // resolution * resolution


def date(time: int, form: str) -> str:
    """A time in UTC as a format of strftime has it."""
    return datetime.fromtimestamp(time, UTC).strftime(form)


def text(lines: Iterable[str], path: Path, encoding: str = "utf-8", end: str = "\n") -> None:
    """Write lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode(encoding))


def lines(line: Callable[[Interaction], str], *header: str, in_order: bool = False, **how: str) -> Writer:
    """A writer of one line for each interaction; `in_order`, where the order of the file is that of time."""

    def write(path: Path, interactions: Sequence[Interaction]) -> None:
        rows = sorted(interactions, key=lambda each: each.time) if in_order else interactions
        text([*header, *map(line, rows)], path, **how)

    return write


def objects(record: Callable[[Interaction], dict[str, Any]]) -> Writer:
    """A writer of JSON lines."""
    return lines(lambda each: json.dumps(record(each)))


def packed(writer: Writer, compress: Callable[[bytes], bytes]) -> Writer:
    """A writer of a compressed file."""

    def write(path: Path, interactions: Sequence[Interaction]) -> None:
        plain = path.with_name("plain")
        path.parent.mkdir(parents=True, exist_ok=True)
        writer(plain, interactions)
        path.write_bytes(compress(plain.read_bytes()))
        plain.unlink()

    return write


def zstd(data: bytes) -> bytes:
    """Data as the command zstd compresses them."""
    compressed: bytes = pa.Codec("zstd").compress(data, asbytes=True)
    return compressed


def zipped(members: dict[str, Callable[[Sequence[Interaction]], bytes]]) -> Writer:
    """A writer of an archive with some files."""

    def write(path: Path, interactions: Sequence[Interaction]) -> None:
        archive = next(place for place in (path, *path.parents) if place.suffix == ".zip")
        archive.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(name, content(interactions))

    return write


def csv_bytes(interactions: Sequence[Interaction]) -> bytes:
    """The interactions as a CSV file."""
    rows = [f"{each.user},{each.item},{each.rating},{each.time}\n" for each in interactions]
    return "".join(["user,item,rating,timestamp\n", *rows]).encode()


def double_colons(interactions: Sequence[Interaction]) -> bytes:
    """The interactions as in MovieLens-1M's ratings.dat."""
    return "".join(f"{each.user}::{each.item}::{each.rating}::{each.time}\n" for each in interactions).encode()


def plain_csv(path: Path, interactions: Sequence[Interaction]) -> None:
    """Write the interactions as a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(csv_bytes(interactions))


def parts(names: Sequence[str]) -> Writer:
    """A writer of files in turn, as many interactions in each; `path` is their folder, or a pattern in it."""

    def write(path: Path, interactions: Sequence[Interaction]) -> None:
        folder = path.parent if "*" in path.name else path
        size = -(-len(interactions) // len(names))
        for number, name in enumerate(names):
            plain_csv(folder / name, interactions[number * size : (number + 1) * size])
        (folder / "_SUCCESS").write_bytes(b"")
        (folder / "README.md").write_text("Not a log.")

    return write


def by_day(path: Path, interactions: Sequence[Interaction]) -> None:
    """Partitions as Hive and Spark write them: the day is in the folder's name alone."""
    days = sorted({date(each.time, "%Y-%m-%d") for each in interactions})
    for day in days:
        rows = [f"{each.user},{each.item}" for each in interactions if date(each.time, "%Y-%m-%d") == day]
        text(["user,item", *rows], path / f"date={day}" / "part-0.csv")


def by_user(interactions: Sequence[Interaction]) -> dict[int, list[int]]:
    """Each user's items in the order of time."""
    users: dict[int, list[int]] = {}
    for each in sorted(interactions, key=lambda each: each.time):
        users.setdefault(each.user, []).append(each.item)
    return dict(sorted(users.items()))


def pairs(path: Path, interactions: Sequence[Interaction]) -> None:
    """A line for each item of a user, users one after the other."""
    text([f"{user} {item}" for user, items in by_user(interactions).items() for item in items], path)


def user_lines(path: Path, interactions: Sequence[Interaction]) -> None:
    """A line for each user."""
    text([" ".join(map(str, [user, *items])) for user, items in by_user(interactions).items()], path)


def impressions(path: Path, interactions: Sequence[Interaction]) -> None:
    """MIND's: each interaction is the click of an impression, after a history that is empty."""
    text(
        (
            f"{number}\tU{each.user}\t{clock(each.time)}\t\tN0-0 N{each.item}-1 N99-0"
            for number, each in enumerate(interactions, 1)
        ),
        path,
    )


def clock(time: int) -> str:
    """A time as MIND has it, without leading zeros."""
    moment = datetime.fromtimestamp(time, UTC)
    return f"{moment.month}/{moment.day}/{moment.year} {moment.hour % 12 or 12}{moment.strftime(':%M:%S %p')}"


def parquet(path: Path, interactions: Sequence[Interaction]) -> None:
    """Parquet with the names of shared test data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {"user": "user_id", "item": "item_id", "time": "timestamp"}
    pl.DataFrame([each._asdict() for each in interactions]).rename(names).drop("event").write_parquet(path)


def three(interactions: Sequence[Interaction]) -> Sequence[Sequence[Interaction]]:
    """Those for training, validation and test."""
    return interactions[:-8], interactions[-8:-4], interactions[-4:]


def split_files(path: Path, interactions: Sequence[Interaction]) -> None:
    """Files for training, validation and test."""
    for name, rows in zip(("train", "valid", "test"), three(interactions), strict=True):
        plain_csv(path.with_name(f"{name}.csv"), rows)


def quoted(*values: object, separator: str) -> str:
    """Values as a line of a file that quotes all of them."""
    file = io.StringIO()
    csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL, lineterminator="").writerow(values)
    return file.getvalue()


def amazon_ids(user: int, item: int) -> tuple[str, str]:
    """Ids as Amazon has them."""
    return f"A{user:013d}", f"B{item:09d}"


STEAM = {"view": "purchase", "buy": "play"}
ENGLISH = "%a %b %d %H:%M:%S +0000 %Y"
RETAIL = {"view": "view", "buy": "transaction"}
CSV = Form(plain_csv, has_rating=True)
FORMS = {
    "unusual_time_name.csv": Form(lines(lambda e: f"u{e.user},i{e.item},{e.time}", "user_id,item_id,event_time"),
                                  lambda u, i: (f"u{u}", f"i{i}")),
    "first_object_without_time.jsonl": Form(objects(lambda e: {"user_id": e.user, "item_id": e.item,
                                                               **({"timestamp": e.time} if e.rating > 1 else {})}),
                                            keeps=lambda e: e.rating > 1, reader="json_lines"),
    "headerless_action.csv": Form(lines(lambda e: f"{e.user},{e.item},{e.time},{e.rating}")),
    "sessions_and_users.csv": Form(lines(lambda e: f"{e.user};NA;{e.item};{e.time};{date(e.time, '%Y-%m-%d')}",
                                         "sessionId;userId;itemId;timeframe;eventdate")),
    "temporal_sessions.csv": Form(lines(lambda e: f"{e.user},{e.item},{e.time}", "session_id,item_id,timestamp")),
    "events.csv": Form(lines(lambda e: f"{e.time * 1000},{e.user},{RETAIL[e.event]},{e.item},",
                             "timestamp,visitorid,event,itemid,transactionid"), keeps=lambda e: e.event == "buy"),
    "clicks.dat": Form(lines(lambda e: f"{e.user},{date(e.time, '%Y-%m-%dT%H:%M:%S.000Z')},{e.item},0")),
    "UserBehavior.csv": Form(lines(lambda e: f"{e.user},{e.item},7,{'pv' if e.event == 'view' else 'buy'},{e.time}"),
                             keeps=lambda e: e.event == "view"),
    "steam-200k.csv": Form(lines(lambda e: f'{e.user},"Game, {e.item} ",{STEAM[e.event]},{e.rating}.5,0',
                                 in_order=True),
                           lambda u, i: (u, f"Game, {i} "), resolution=None,
                           keeps=lambda e: e.event == "buy" and e.rating >= 2),
    "loc-gowalla_totalCheckins.txt": Form(
        lines(lambda e: f"{e.user}\t{date(e.time, '%Y-%m-%dT%H:%M:%SZ')}\t30.2\t-97.7\t{e.item}")),
    "dataset_TSMC2014_NYC.txt": Form(
        lines(lambda e: f"{e.user}\tv{e.item}\t4bf58\tCafé\t40.7\t-74.0\t-240\t{date(e.time, ENGLISH)}",
              encoding="latin-1"), lambda u, i: (u, f"v{i}")),
    "userid-timestamp-artid-artname-traid-traname.tsv": Form(
        lines(lambda e: f'user_{e.user:06d}\t{date(e.time, "%Y-%m-%dT%H:%M:%SZ")}\t'
                        f'{f"f-{e.item}" if e.rating > 1 else ""}\t"Weird Al"\t\tTrack (Live "x")'),
        lambda u, i: (f"user_{u:06d}", f"f-{i}"), keeps=lambda e: e.rating > 1),
    "transactions_train.csv": Form(lines(lambda e: f"{date(e.time, '%Y-%m-%d')},{e.user:064x},{e.item:010d},0.05,1",
                                         "t_dat,customer_id,article_id,price,sales_channel_id"),
                                   lambda u, i: (f"{u:064x}", f"{i:010d}"), resolution=86_400),
    "BX-Book-Ratings.csv": Form(lines(lambda e: quoted(e.user, f"{e.item}é", e.rating - 1, separator=";"),
                                      '"User-ID";"ISBN";"Book-Rating"', in_order=True, encoding="latin-1", end="\r\n"),
                                lambda u, i: (u, f"{i}é"), resolution=None, keeps=lambda e: e.rating > 1),
    "goodreads_interactions_poetry.json.gz": Form(packed(objects(
        lambda e: {"user_id": f"g{e.user}", "book_id": str(e.item), "is_read": e.event == "buy", "rating": e.rating,
                   "date_added": date(e.time - 7 * 3600, "%a %b %d %H:%M:%S -0700 %Y"), "read_at": ""}), gzip.compress),
        lambda u, i: (f"g{u}", i), has_rating=True, keeps=lambda e: e.event == "buy", reader="json_lines"),
    "2019-Oct.csv": Form(lines(lambda e: f"{date(e.time, '%Y-%m-%d %H:%M:%S UTC')},{e.event},{e.item},,2,{e.user},s",
                               "event_time,event_type,product_id,brand,price,user_id,user_session"),
                         keeps=lambda e: e.event == "view"),
    "big_matrix.csv": Form(lines(lambda e: f"{e.user},{e.item},9,8,{date(e.time, '%Y-%m-%d %H:%M:%S.438')},0.0,"
                                           f"{e.time},{e.rating / 2}",
                                 "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio"),
                           keeps=lambda e: e.rating >= 2),
    "All_Beauty.jsonl": Form(objects(lambda e: {"rating": float(e.rating), "title": 'a "b"\n', "asin": f"V{e.item}",
                                                "parent_asin": f"B{e.item}", "user_id": f"A{e.user}",
                                                "timestamp": e.time * 1000}),
                             lambda u, i: (f"A{u}", f"B{i}"), has_rating=True, reader="amazon_reviews"),
    "Video.txt": Form(pairs, resolution=None, reader="sasrec"),
    "one_user_a_line.txt": Form(user_lines, resolution=None, reader="s3rec"),
    "behaviors.tsv": Form(impressions, lambda u, i: (f"U{u}", f"N{i}"), reader="mind"),
    "lastfm_csrec/lastfm_small.csv": Form(lines(lambda e: f"{e.user},{e.item},{e.rating}", "session_id,item_id,rating",
                                                in_order=True), has_rating=True, resolution=None),
    "lastfm_hetrec/user_taggedartists.dat": Form(
        lines(lambda e: f"{e.user}\t{e.item}\t{e.rating}\t" + date(e.time, "%d\t%m\t%Y"),
              "userID\tartistID\ttagID\tday\tmonth\tyear"), resolution=86_400, reader="hetrec"),
    "ml100k/ml-100k.inter": Form(lines(lambda e: f"{e.user}\t{e.item}\t{e.rating}\t{e.time}",
                                       "user_id:token\titem_id:token\trating:float\ttimestamp:float"),
                                 has_rating=True, reader="inter"),
    "amazon_hin/user_item.dat": Form(lines(lambda e: f"{e.user}\t{e.item}\t{e.rating}\t{e.time}"), has_rating=True,
                                     reader="movielens"),
    "ml1m/interactions.parquet": Form(parquet, has_rating=True, reader="parquet"),
    "ml-1m.zip/ml-1m/ratings.dat": Form(zipped({"ml-1m/ratings.dat": double_colons,
                                                "ml-1m/users.dat": lambda _: b"1::F", "ml-1m/README": lambda _: b"-"}),
                                        has_rating=True, reader="movielens"),
    "ratings_Electronics.csv": Form(lines(lambda e: f"{','.join(amazon_ids(e.user, e.item))},{e.rating}.0,{e.time}"),
                                    amazon_ids, has_rating=True, reader="amazon_ratings"),
    "Electronics.csv": Form(lines(lambda e: f"{','.join(amazon_ids(e.user, e.item)[::-1])},{e.rating}.0,{e.time}"),
                            amazon_ids, has_rating=True, reader="amazon_ratings"),
    "Electronics_5.json": Form(objects(lambda e: {"overall": e.rating, "reviewerID": amazon_ids(e.user, e.item)[0],
                                                  "asin": amazon_ids(e.user, e.item)[1], "unixReviewTime": e.time}),
                               amazon_ids, has_rating=True, reader="amazon_reviews"),
    "yelp_academic_dataset_review.json": Form(objects(
        lambda e: {"user_id": f"u{e.user}", "business_id": f"b{e.item}", "stars": float(e.rating), "text": "good",
                   "date": date(e.time, "%Y-%m-%d %H:%M:%S")}),
        lambda u, i: (f"u{u}", f"b{i}"), has_rating=True, reader="yelp"),
    "spaces.txt": Form(lines(lambda e: f"{e.user} {e.item} {e.time}", "user item time")),
    "hashes.txt": Form(lines(lambda e: f"{e.user}#{e.item}#{e.time}")),
    "parts/": Form(parts(["part-2.csv", "part-10.csv", "part-11.csv"]), has_rating=True),
    "logs/2019-*.csv": Form(parts(["2019-Nov.csv", "2019-Oct.csv"]), has_rating=True),
    "hive/": Form(by_day, resolution=86_400),
    "log.zip": Form(zipped({"log.csv": csv_bytes, "README.md": lambda _: b"Read me."}), has_rating=True),
    "log.csv.gz": Form(packed(plain_csv, gzip.compress), has_rating=True),
    "log.csv.bz2": Form(packed(plain_csv, bz2.compress), has_rating=True),
    "log.csv.xz": Form(packed(plain_csv, lzma.compress), has_rating=True),
    "log.csv.zst": Form(packed(plain_csv, zstd), has_rating=True),
    "train.csv": Form(split_files, has_rating=True, split=three),
}  # fmt: skip
FORMS["temporal_sessions_one_straddles.csv"] = FORMS["temporal_sessions.csv"]
UNREADABLE = {
    "steam_reviews.json.gz": packed(lines(lambda e: f"{{u'username': u'{e.user}', u'ok': False}}"), gzip.compress),
}
"""Forms that are refused."""
