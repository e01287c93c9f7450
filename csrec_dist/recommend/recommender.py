"""A trained model with the raw ids of its items and users: recommendations, similar items and states in Python."""

import html
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F

from csrec_dist import models
from csrec_dist.config import is_resolved
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.ids import RawIds
from csrec_dist.distributed.catalog import PlainTable
from csrec_dist.distributed.groups import ALONE, Group
from csrec_dist.distributed.joining import processes
from csrec_dist.errors import UserError, listed, quoted
from csrec_dist.evaluation import top_items
from csrec_dist.files import atomic_path, make_folder, read_json, sha256_file
from csrec_dist.hub import CARD_FILE, DOWNLOADED, check_hub_name, download, is_hub_name, upload
from csrec_dist.models import SequentialModel
from csrec_dist.models.pretrained import CONFIG_FILE, refuse_foreign
from csrec_dist.process_state import matmul_precision
from csrec_dist.recommend.card import model_card
from csrec_dist.recommend.ranked import BATCH_SIZE, History, Ranked, rank, require_batch_size, states_of
from csrec_dist.recommend.raw_histories import KnownItems, checked, numbers_of_users, of_anybody
from csrec_dist.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

ITEMS_FILE, METRICS_FILE = "items.parquet", "metrics.json"


class Recommender:
    """A trained model that takes and gives the raw ids of the log.

    `model` is in evaluation mode. `items` are the raw ids of its items; `dataset` is the one it was trained on, if it
    is at hand: the users and their histories are there.
    """

    def __init__(
        self,
        model: SequentialModel,
        items: RawIds,
        dataset: Dataset | None = None,
        origin: Run | Path | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """UserError unless the model knows as many items as there are raw ids.

        `origin` is the run or the folder that the model is of, which has more to say of it. By default the device is a
        GPU if there is one.
        """
        if model.num_items != len(items):
            raise UserError(f"The model knows {model.num_items} items, but {items.path} has {len(items)} raw ids.")
        self.model = model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.items, self.dataset, self._origin = items, dataset, origin

    @classmethod
    def from_pretrained(cls, source: Path | str, *, device: torch.device | str | None = None) -> Self:
        """The recommender of a run's student, or of what `save_pretrained` or `push_to_hub` wrote.

        Args:
            source: the folder of a finished run or of `save_pretrained`; or OWNER/NAME of a repository of the Hub,
                which is downloaded where there is no such folder; OWNER/NAME@REVISION is one commit, branch or tag.
            device: where the model works, such as "cpu"; a GPU by default, if there is one.

        Raises:
            UserError: it is nothing of that, or the run has no student yet.

        >>> Recommender.from_pretrained("runs/shop")
        Recommender(gru4rec: 20 users, 7 items, on cpu)
        """
        folder = Path(source)
        if not folder.exists() and is_hub_name(str(source)):
            folder = download(str(source))
        if is_resolved(folder / "config.yaml"):
            return cls.of_run(folder, device=device)
        if not (folder / CONFIG_FILE).exists():
            raise UserError(
                f"{folder} is neither the folder of a run nor one that Recommender.save_pretrained wrote: it has no "
                f"config.yaml of a run and no {CONFIG_FILE}."
            )
        if not (folder / ITEMS_FILE).exists():
            raise UserError(
                f"{folder} has a model, but no {ITEMS_FILE} with the raw ids of its items. Give the folder of the run, "
                "or one that Recommender.save_pretrained wrote; csrec_dist.models.load loads the model alone."
            )
        trained = read_json(folder / METRICS_FILE) if (folder / METRICS_FILE).exists() else {}
        if trained.get("id_map") not in (None, sha256_file(folder / ITEMS_FILE)[:16]):
            raise UserError(
                f"{folder / ITEMS_FILE} is damaged, or of other items: it has another checksum than {METRICS_FILE} "
                "says. Save the model again, or take back the files as they were saved."
            )
        return cls(models.load(folder), RawIds(folder / ITEMS_FILE), origin=folder, device=device)

    @classmethod
    def of_run(
        cls,
        folder: Path | str,
        group: Group = ALONE,
        *,
        is_mapped: bool = False,
        device: torch.device | str | None = None,
    ) -> Self:
        """The recommender of a run's student; UserError if it was not trained on the run's dataset.

        With a group of ranks, each has a slice of the item table, and all of them make the same calls. With `is_mapped`
        the student's weights stay in their file (`SequentialModel.from_pretrained`).
        """
        run = Run.open(folder)
        run.require("distill")
        dataset, model = run.dataset, models.load(run.folder / "student", group, is_mapped=is_mapped)
        if (model.num_items, model.max_length) != (dataset.num_items, dataset.window - 1):
            raise UserError(
                f"{run.folder / 'student'} knows {model.num_items} items and reads histories of {model.max_length}, "
                f"but {dataset.folder} has {dataset.num_items} items in windows of {dataset.window}: they do not "
                "belong to the same run."
            )
        trained = run.folder / "student" / METRICS_FILE
        id_map = read_json(trained).get("id_map") if trained.exists() else None
        if id_map not in (None, dataset.id_map_fingerprint):
            raise UserError(
                f"{run.folder / 'student'} was trained on other items, or on these in another order, than those of "
                f"{dataset.folder}, which was prepared again since. Prepare it as it was, or fit a new run on it."
            )
        return cls(model, dataset.items, dataset, run, device)

    def __repr__(self) -> str:
        users = f"{self.dataset.num_users:,} users, " if self.dataset else ""
        return f"Recommender({self.model.config.name}: {users}{self.model.num_items:,} items, on {self._device})"

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"

    def recommend(
        self,
        users: Iterable[Any] | None = None,
        histories: Iterable[Iterable[Any]] | Mapping[Any, Iterable[Any]] | None = None,
        *,
        top_n: int = 10,
        exclude_seen: bool = False,
        items: Iterable[Any] | None = None,
        exclude_items: Iterable[Any] | None = None,
        unknown_users: Literal["error", "skip"] = "error",
        batch_size: int = BATCH_SIZE,
    ) -> "pd.DataFrame":
        """The best items for users of the dataset, or after histories of anybody.

        Unknown items of histories and of `items` are left out, with a warning that counts and names some of them; so
        are histories without a known item: those users have no rows.

        Args:
            users: raw ids of users, whose history is everything they ever had; all of the dataset by default.
            histories: instead of users: raw ids of items, oldest first, in a list for each history, or in a dict or a
                pandas Series by user. The user of a list is its place, from 0.
            top_n: items of each list.
            exclude_seen: leave out the items of the history; lists may then be shorter than `top_n`.
            items: raw ids of the items that may be recommended, such as those in stock; all by default.
            exclude_items: raw ids of items that may not be, such as those sold out.
            unknown_users: whether a user that the dataset does not have is an error, or left out with a warning.
            batch_size: histories to score at once.

        Returns:
            A pandas DataFrame with a row for each recommended item: user, item, score (the logit) and rank (from 1).

        Raises:
            UserError: a user is unknown, there is no dataset to know users from, no history has a known item, no item
                may be recommended, or top_n is not in 1…V.

        >>> lists = rec.recommend(users=["c1", "c7"], top_n=3)
        >>> list(lists.columns), len(lists)
        (['user', 'item', 'score', 'rank'], 6)
        >>> new = rec.recommend(histories={"new": ["sku1", "sku4"]}, top_n=2, items=["sku2", "sku5"])
        >>> sorted(new["item"])
        ['sku2', 'sku5']
        """
        if users is not None and histories is not None:
            raise UserError("Give either users or histories, not both: a user of the dataset has a history there.")
        known = KnownItems(self.items, "the histories")
        source = self.histories_of(users, unknown_users) if histories is None else of_anybody(histories, known)
        candidates = None if items is None else self._numbers(items, "the items that may be recommended")
        if exclude_items is not None:
            candidates = self._without(exclude_items, candidates)
        ranked = rank(
            self.model, source, top_n, exclude_seen=exclude_seen, candidates=candidates, batch_size=batch_size
        )
        parts = list(ranked)
        if str(known):
            if not parts:
                raise UserError(f"There is nothing to recommend: {known}. Name items by the ids of the raw log.")
            warnings.warn(f"{known}.", stacklevel=2)
        return self._frame(parts)

    def similar_items(self, items: Iterable[Any], top_n: int = 10) -> "pd.DataFrame":
        """The items whose vectors are nearest to those of `items` by the cosine; unknown items are left out.

        Returns:
            A pandas DataFrame: item, similar_item, score (the cosine) and rank (from 1).

        Raises:
            UserError: none of the items is known, or top_n is not in 1…V − 1.

        >>> rec.similar_items(["sku1"], top_n=2).shape
        (2, 4)
        """
        numbers = self._numbers(items, "the items", in_order=True)
        others = self.model.num_items - 1
        if isinstance(top_n, bool) or not isinstance(top_n, Integral) or not 1 <= top_n <= others:
            raise UserError(f"top_n is a whole number of 1…{others}, as there are {others} other items; not {top_n!r}.")
        weight = F.normalize(self.model.item_table.weight.detach().float(), dim=1)
        asked = torch.from_numpy(numbers).to(weight.device)
        with matmul_precision("highest"):  # as evaluation multiplies
            similar, scores = top_items(weight[asked - 1], PlainTable.whole(weight), top_n, seen=asked.unsqueeze(1))
        frame = self._frame([_whole(numbers, similar.cpu().numpy(), scores.cpu().numpy())])
        item = self.items.of(np.repeat(numbers, top_n)).to_pandas()
        return frame.assign(user=item).rename(columns={"user": "item", "item": "similar_item"})

    def encode(self, histories: Iterable[Iterable[Any]], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """The model's states [n, d] (float32) of histories of raw ids, oldest first; unknown items are left out.

        Their products with the item vectors `model.item_table.weight` (and its bias) are the scores.

        Raises:
            UserError: a history has no known item, or the batch size is not positive.

        >>> rec.encode([["sku1", "sku4"], ["sku2"]]).shape
        (2, 8)
        """
        require_batch_size(batch_size)
        known = KnownItems(self.items, "the histories")
        numbers = [items for _, items in of_anybody(histories, known, skipping=False)]
        if known.num_skipped:
            raise UserError(
                f"History {numbers.index([])} has no item that the model knows, so it has no state. Leave it out, or "
                "name items by the ids of the raw log."
            )
        if known.num_unknown:
            warnings.warn(f"{known}.", stacklevel=2)
        starts = range(0, len(numbers), batch_size)
        states = [states_of(self.model, numbers[start : start + batch_size]).float().cpu() for start in starts]
        return torch.cat(states).numpy() if states else np.zeros((0, self.model.config.width), np.float32)

    def histories_of(
        self, users: Iterable[Any] | None = None, unknown_users: Literal["error", "skip"] = "error"
    ) -> Iterator[History]:
        """Users of the dataset, in the order in which they are named, each with the numbers of all items they ever had.

        Args:
            users: raw ids of users; all of the dataset by default.
            unknown_users: as for `recommend`.

        Raises:
            UserError: a user is unknown, or there is no dataset to know users from.

        >>> [(user, len(items)) for user, items in rec.histories_of(["c7", "c1"])]
        [('c7', 9), ('c1', 9)]
        """
        if self.dataset is None:
            raise UserError(
                "Users and their histories are in the dataset, which was not saved with the model. Give histories, or "
                "load the recommender from its run."
            )
        dataset, ids = self.dataset, self.dataset.users
        if users is None:
            return ((ids.values[user - 1].as_py(), items.tolist()) for user, items in dataset.sequences())
        numbers = numbers_of_users(users, ids, unknown_users)
        sequences = dict(dataset.sequences(numbers))
        return ((ids.values[user - 1].as_py(), sequences[user].tolist()) for user in numbers)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write model.safetensors, config.json and items.parquet, which `from_pretrained` reads, and README.md.

        README.md is the model card: data, protocol, metrics with intervals, method, versions, limits. metrics.json
        tells of the training, so that the folder may serve as a teacher (`teachers.pretrained`). Users and their
        histories are not written. Under a launcher the first rank writes.

        Raises:
            UserError: the folder has something else in it.

        >>> rec.save_pretrained("models/shop")
        >>> Recommender.from_pretrained("models/shop")
        Recommender(gru4rec: 7 items, on cpu)
        """
        with processes() as ranks:
            ranks.on_main(lambda: self._write(Path(folder)))

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None) -> str:
        """Put what `save_pretrained` writes into the repository `name` (OWNER/NAME) of the Hub; returns its address.

        The repository is made if need be. HF_ENDPOINT names another server than huggingface.co. Under a launcher the
        first rank pushes.

        Raises:
            UserError: the name is no name, the server cannot be reached, or it asks for another token.
        """
        check_hub_name(name)

        def push() -> str:
            with TemporaryDirectory() as folder:
                self._write(Path(folder))
                return upload(Path(folder), name, private, token)

        with processes() as ranks:
            return ranks.on_main(push)

    def export(
        self,
        folder: Path | str,
        format: str = "onnx",
        *,
        top_n: int = 100,
        index: str = "Flat",
        histories: Iterable[Iterable[Any]] | None = None,
    ) -> dict[str, Any]:
        """Write the model for programs without csrec_dist, checked against the model itself; docs/serving.md reads it.

        Under a launcher the first rank writes.

        Args:
            format: "onnx" or "pt2" (torch.export): the encoder with the exact best items in one graph; "flat" or
                "faiss": the item vectors, or an index of them, beside an encoder as ONNX. Batch and length are free.
            top_n: items of the lists that onnx and pt2 give, and of those that are checked.
            index: faiss's factory string. Of others than "Flat", which is exact, the recall is measured.
            histories: raw ids of items, oldest first, to check the files with, unknown items left out; users of
                the dataset by default.

        Returns:
            What export.json says beside the files: formats of inputs and outputs, the check, versions.

        Raises:
            UserError: there is no such format or no such export of the model, a package is missing, the folder has
                something else in it, or the files give other lists than the model: then nothing is written.

        >>> rec.export("exports/shop", format="pt2", top_n=5)["check"]["lists"]
        40
        """
        with processes() as ranks:
            return ranks.on_main(lambda: self.write_export(folder, format, top_n, index, histories))

    def write_export(
        self,
        folder: Path | str,
        format: str,
        top_n: int = 100,
        index: str = "Flat",
        histories: Iterable[Iterable[Any]] | None = None,
    ) -> dict[str, Any]:
        """What `export` does, on the rank that calls it: the other ranks need not have loaded the model.

        >>> rec.write_export("exports/flat", format="flat")["format"]
        'flat'
        """
        from csrec_dist.export import export_model  # which imports torch's tracers

        numbers = self._to_check(histories)
        return export_model(self.model, self.items, Path(folder), format, numbers, top_n=top_n, index=index)

    def _to_check(self, histories: Iterable[Iterable[Any]] | None) -> list[list[int]]:
        """Histories of item numbers that an export is checked with."""
        from csrec_dist.export import histories_to_check

        if histories is not None:
            known = KnownItems(self.items, "the histories")
            if numbers := [items for _, items in of_anybody(histories, known)]:
                return numbers
            raise UserError(f"There is nothing to check the export with: {known or 'no history was given'}.")
        if self.dataset is None:
            raise UserError(
                "An export is checked with real histories, and the dataset was not saved with the model. Give some as "
                "histories, or export from the folder of the run."
            )
        return histories_to_check(self.dataset)

    def _write(self, folder: Path) -> None:
        """Everything of a saved recommender, the config last: a folder with a config is whole."""
        origin = self._origin
        card = metrics = None
        if isinstance(origin, Run):
            card, metrics = model_card(origin).encode(), _content(origin.folder / "student" / METRICS_FILE)
        elif origin is not None:
            card, metrics = _content(origin / CARD_FILE), _content(origin / METRICS_FILE)
        _refuse_others(folder)
        make_folder(folder)
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        if not (folder / ITEMS_FILE).exists() or not self.items.path.samefile(folder / ITEMS_FILE):
            with atomic_path(folder / ITEMS_FILE) as temporary:
                shutil.copyfile(self.items.path, temporary)
        for name, content in ((CARD_FILE, card), (METRICS_FILE, metrics)):
            if content is None:  # what is there tells of another model
                (folder / name).unlink(missing_ok=True)
            else:
                with atomic_path(folder / name) as temporary:
                    temporary.write_bytes(content)
        self.model.save_pretrained(folder)

    @property
    def _device(self) -> torch.device:
        return self.model.item_table.weight.device

    def _numbers(self, raw_items: Iterable[Any], what: str, in_order: bool = False) -> np.ndarray:
        """Numbers of raw items, ascending unless `in_order`; unknown ones are left out with a warning."""
        raw = list(checked(raw_items, what))
        known = [number for each in raw if (number := self.items.number(each)) is not None]
        if not known:
            raise UserError(f"None of {what} is in the dataset: {listed(map(quoted, raw))}. Name them as the log does.")
        if len(known) < len(raw):
            warnings.warn(f"{len(raw) - len(known):,} of {what} are not in the dataset.", stacklevel=3)
        return np.array(known if in_order else sorted(set(known)), np.int64)

    def _without(self, raw_items: Iterable[Any], candidates: np.ndarray | None) -> np.ndarray:
        """The candidates, by default all items, without those that are named; unknown ones are no candidates anyway."""
        excluded = [self.items.number(raw) for raw in checked(raw_items, "exclude_items")]
        among = np.arange(1, self.model.num_items + 1) if candidates is None else candidates
        left = np.setdiff1d(among, np.array([number for number in excluded if number is not None], np.int64))
        if not len(left):
            raise UserError("exclude_items leaves no item that may be recommended.")
        return left

    def _frame(self, parts: Sequence[Ranked]) -> "pd.DataFrame":
        """Lists as a table."""
        import pandas as pd

        lengths = np.concatenate([part.lengths for part in parts]) if parts else np.zeros(0, np.int64)
        users = pd.Index([user for part in parts for user in part.users], tupleize_cols=False)
        items = np.concatenate([part.items for part in parts]) if parts else lengths
        scores = np.concatenate([part.scores for part in parts]) if parts else lengths.astype(np.float32)
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        columns = {"user": users.repeat(lengths), "item": self.items.of(items).to_pandas(), "score": scores}
        return pd.DataFrame({**columns, "rank": np.arange(len(items)) - starts + 1})


def _whole(queries: np.ndarray, items: np.ndarray, scores: np.ndarray) -> Ranked:
    """Lists [B, n] of which nothing is left out."""
    return Ranked(tuple(queries.tolist()), np.full(len(queries), items.shape[1]), items.ravel(), scores.ravel())


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _refuse_others(folder: Path) -> None:
    """UserError for a folder with anything but a saved recommender, which begins with its items."""
    names = sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []
    others = [name for name in names if not any(fnmatch(name, own) for own in DOWNLOADED)]
    if names and (others or ITEMS_FILE not in names):
        raise UserError(
            f"{folder} has something else in it than a saved recommender: {listed(others or names)}. Give another "
            "folder."
        )
    refuse_foreign(folder)
