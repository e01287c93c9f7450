"""Stage teach: the members of the teacher module, several at once where there are ranks for it, or trained ones."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from csrec_dist import models
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.order import RowSample
from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.distributed.layout import Layout, teaching_rounds
from csrec_dist.errors import SharedUserError, UserError
from csrec_dist.files import read_json, remove, write_record
from csrec_dist.labels import LabelCache
from csrec_dist.labels.options import LabelOptions
from csrec_dist.losses.noise import NoiseMatrix, RobustLoss
from csrec_dist.models import SequentialModel
from csrec_dist.models.pretrained import read_description
from csrec_dist.models.transfer import extended
from csrec_dist.models.weight_files import weight_files
from csrec_dist.runs.inputs import weights_fingerprint
from csrec_dist.runs.stages.active import ActiveRun, check_dataset
from csrec_dist.runs.stages.elastic import train_together
from csrec_dist.runs.stages.fitting import Fit, Training, fit
from csrec_dist.runs.stages.healthy import check_members
from csrec_dist.runs.stages.label import label_into
from csrec_dist.teachers import Member
from csrec_dist.training import StopSignals, one_hot


def check(run: ActiveRun, inputs: dict[str, Any]) -> None:
    """UserError on every rank when the dataset is damaged, a trained model cannot be a member, or one has no rows."""
    check_dataset(run)

    def on_main() -> None:
        for folder in run.config.teachers.pretrained:
            load_pretrained(run, folder)

    run.runtime.on_main(on_main)
    if not run.config.teachers.pretrained:
        for member in run.config.module.members:
            row_sample(run, member)


def trainings(run: ActiveRun, inputs: dict[str, Any], root: Path) -> list[Training]:
    """The trainings of the members, under `root`; that of a regularised one only when its regulariser is trained."""
    if run.config.teachers.pretrained:
        return []
    members = run.config.module.members
    can_begin = [
        each for each in members if not each.regularised_by or weight_files(root / "teachers" / each.regularised_by)
    ]
    return [member_training(inputs, member, root) for member in can_begin]


def member_training(inputs: dict[str, Any], member: Member, root: Path) -> Training:
    """A member's, under `root`."""
    folder, checkpoints = (root / part / member.name for part in ("teachers", "checkpoints/teach"))
    return Training(folder, checkpoints, member_inputs(inputs, member, root))


def work(run: ActiveRun, inputs: dict[str, Any]) -> dict[str, Any]:
    """Train the members that are not trained yet, or copy trained models into the run."""
    if run.config.teachers.pretrained:
        with run.log("teach") as log:
            run.runtime.on_main(lambda: take_pretrained(run, log.say))
    else:
        for members in run.config.module.rounds:
            teach_members(run, members, inputs)
    names = run.config.member_names
    with run.log("teach") as log:
        warnings = check_members(run, names, log.say)
    members = run.runtime.on_main(lambda: {n: weights_fingerprint(run.member_folder(n)) for n in names})
    return {"members": members, **({"warnings": warnings} if warnings else {})}


def take_pretrained(run: ActiveRun, say: Callable[[str], None]) -> None:
    """Copy trained models into the run, those of fewer items with vectors for the others."""
    id_map, num_items = run.dataset.id_map_fingerprint, run.dataset.num_items
    for name, folder in zip(run.config.member_names, run.config.teachers.pretrained, strict=True):
        num_known = read_description(folder).num_items
        if num_known < num_items:
            say(f"{name} knows the first {num_known:,} of {num_items:,} items; the others get its mean logit")
        make_way(run.member_folder(name))
        load_pretrained(run, folder).save_pretrained(run.member_folder(name))
        taken = {"taken_from": str(folder), "id_map": id_map, "known_items": num_known}
        write_record(run.member_folder(name) / "metrics.json", taken)


def make_way(member: Path) -> None:
    """For a model that is taken from elsewhere: a member that another run lends goes, one that was trained here stays.

    Raises UserError for the latter.
    """
    if member.is_symlink():
        member.unlink()
    elif (member / "metrics.json").exists() and "taken_from" not in read_json(member / "metrics.json"):
        raise UserError(
            f"{member} was trained by this run, and teachers.pretrained would replace it. Give --restart teach, which "
            "replaces it, or another name."
        )


def teach_members(run: ActiveRun, members: tuple[Member, ...], inputs: dict[str, Any]) -> None:
    """Train those of these members that are not trained yet, side by side where there are ranks for it."""
    todo = run.runtime.on_main(lambda: [k for k, member in enumerate(members) if not is_taught(run, member, inputs)])
    for name in sorted({name for k in todo if (name := members[k].regularised_by)}):
        label_into(run, regulariser_folder(run, name), [name], f"teach/{name}/labels", LabelOptions(dtype="float32"))
    runtime, catalog_parallel = run.runtime, run.config.distributed.catalog_parallel
    if run.config.distributed.reassign:
        untrained = [members[k] for k in todo]
        rounds = teaching_rounds(list(range(len(untrained))), runtime.world_size, catalog_parallel)
        if rounds:
            # The first round alone: ranks that are done with a member take the next one, or help with another.
            train = partial(teach_member, run, untrained, inputs)
            train_together(runtime, rounds[0], len(untrained), catalog_parallel, train)
        return
    # Rounds of all members, trained or not: so a member has the same ranks, and the same sums, after an interruption.
    for slots in teaching_rounds(list(range(len(members))), runtime.world_size, catalog_parallel):
        layout = runtime.layout([slot.ranks for slot in slots], catalog_parallel)
        member = next(slot.member for slot in slots if runtime.rank in slot.ranks)
        if member in todo:
            teach_member(run, members, inputs, member, layout)
        runtime.world.barrier()


def is_taught(run: ActiveRun, member: Member, inputs: dict[str, Any]) -> bool:
    """Whether a member is trained to its end; one that was regularised by other weights than there are is removed."""
    training = member_training(inputs, member, run.path("teachers").parent)
    if member.regularised_by and training.is_of_others():
        remove(training.folder)
        remove(training.checkpoints)
    return training.is_ended(run.training)


def regulariser_folder(run: ActiveRun, name: str) -> Path:
    """The folder, beside a trained member, of its predictions for all training examples."""
    return run.member_folder(name) / "labels"


def load_pretrained(run: ActiveRun, folder: str) -> SequentialModel:
    """A trained model that can be a member of the run; UserError when it knows other items or too short histories.

    One that was trained on a dataset that this one extends gets the vectors of the items that are new to it.
    """
    model, dataset = models.load(folder), run.dataset
    if model.num_items < dataset.num_items and model.num_items == dataset.num_known(id_map_of(Path(folder))):
        model = extended(model, dataset.num_items)
    require_fit(model, folder, dataset)
    if not run.config.teachers.trust_item_order:
        require_id_map(Path(folder), dataset)
    return model


def require_fit(model: SequentialModel, folder: str, dataset: Dataset) -> None:
    """UserError unless the model has the dataset's number of items and takes its longest histories."""
    if model.num_items != dataset.num_items:
        raise UserError(
            f"The pretrained member {folder} knows {model.num_items} items, but the dataset has {dataset.num_items}; "
            "give a model that was trained on the items of this dataset."
        )
    if model.max_length < dataset.window - 1:
        raise UserError(
            f"The pretrained member {folder} reads histories of up to {model.max_length} items, but those of this "
            f"dataset have up to {dataset.window - 1}; set dataset.window={model.max_length + 1} or less, or give a "
            "model for longer histories."
        )


def require_id_map(folder: Path, dataset: Dataset) -> None:
    """UserError unless the model's folder says that it was trained with the item ids of this dataset or the first ones.

    Without that, row i + 1 of its item table would be taken for item i + 1 by its place alone.
    """
    id_map = id_map_of(folder)
    if dataset.num_known(id_map) is not None:
        return
    known = "does not say which item each row of its table is" if id_map is None else "was trained on other items"
    raise UserError(
        f"The pretrained member {folder} {known}: rows and items would be joined by their place. If row i + 1 is item "
        f"i + 1 of {dataset.folder / 'items.parquet'}, set teachers.trust_item_order: true; if the order is another, "
        "convert the model again in the order of that file (`items` of models.interop.from_recbole)."
    )


def id_map_of(folder: Path) -> str | None:
    """The fingerprint of the item ids that a model says it was trained with."""
    path = folder / "metrics.json"
    return read_json(path).get("id_map") if path.exists() else None


def member_inputs(inputs: dict[str, Any], member: Member, root: Path) -> dict[str, Any]:
    """What decides one member: the weights of the one that it is regularised by too, which may have gone on since."""
    regularised_by = (
        {"regularised_by": weights_fingerprint(root / "teachers" / member.regularised_by)}
        if member.regularised_by
        else {}
    )
    return inputs | {"members": inputs["members"][member.name], **regularised_by}


def teach_member(
    run: ActiveRun,
    members: Sequence[Member],
    inputs: dict[str, Any],
    number: int,
    layout: Layout,
    signals: StopSignals | None = None,
    hands_over: Callable[[], bool] | None = None,
) -> bool:
    """Train one of the members on the ranks of a layout; see `fit`."""
    member = members[number]
    task = member_task(run, member, member_inputs(inputs, member, run.path("teachers").parent), layout)
    with run.log(task.stage, layout.group) as log:
        if run.runtime.world_size > 1:
            log.say(f"on {rank_names(layout.group.ranks)}")
        if not task.folder.is_symlink():  # what it predicted before it went on
            layout.group.on_leader(lambda: remove(regulariser_folder(run, member.name)))
        return fit(run, task, layout, log, signals, hands_over)


def member_task(run: ActiveRun, member: Member, inputs: dict[str, Any], layout: Layout) -> Fit:
    """A member's training, its labels and loss being those of this rank's slice of the catalog."""
    catalog = layout.catalog_slice(run.dataset.num_items)
    return Fit(
        stage=f"teach/{member.name}",
        model=member.model,
        seed=member.seed,
        loss_function=one_hot if member.regularised_by is None else main_teacher_loss(run, member, catalog),
        folder=run.member_folder(member.name),
        inputs=inputs,
        labels=LabelCache(regulariser_folder(run, member.regularised_by), run.dataset, layout.catalog)
        if member.regularised_by
        else None,
        sample=row_sample(run, member),
    )


def row_sample(run: ActiveRun, member: Member) -> RowSample | None:
    """The rows a member sees, or None for all; UserError when there are none."""
    if member.sample == 1:
        return None
    sample = RowSample(member.sample, member.seed)
    rows = run.dataset.splits["train"].shard_rows
    if not sum(sample.shard_counts(rows)):
        raise SharedUserError(
            f"teachers.sample: {member.sample:g} of {sum(rows)} windows is less than one window; set a larger share."
        )
    return sample


def main_teacher_loss(run: ActiveRun, member: Member, catalog: CatalogSlice) -> RobustLoss:
    """The loss of Eq. 18, with a noise matrix of its own unless the expectation term is left out."""
    options = run.config.teachers
    noise = None
    if options.expectation:
        noise = NoiseMatrix(
            catalog,
            options.noise_rank,
            seed=member.seed,
            maximum=options.noise_maximum,
            refresh=options.noise_refresh * run.config.training.accumulate,  # it is asked for each micro-batch
        )
    return RobustLoss(options.alpha, noise)


def rank_names(ranks: tuple[int, ...]) -> str:
    """ "rank 0", or "ranks 1, 2"."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
