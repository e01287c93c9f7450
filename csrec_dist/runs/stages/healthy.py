"""What a stage says of the health of the models that it trained, before anything is built on them."""

from collections.abc import Callable, Sequence

import torch

from csrec_dist import models
from csrec_dist.data.batches import question, to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.errors import UserError
from csrec_dist.evaluation.health import at_chance, behind_teachers, signs
from csrec_dist.files import read_json
from csrec_dist.models import SequentialModel
from csrec_dist.runs.stages.active import ActiveRun

MOST_EXAMPLES = 256
MOST_ITEMS = 2048


def check_members(run: ActiveRun, names: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """Say what is wrong with the members; what was said. Every rank calls this, and rank 0 looks.

    Members that were not trained here have no curve. Where the catalog is split, no rank holds a whole model, and the
    curves alone are looked at.

    Raises:
        UserError: labels of one of them would be good for nothing; the members and their checkpoints are kept.
    """

    def look() -> list[str]:
        said = [f"teach/{name}: {text}" for name in names if (text := _curve_problem(run, f"teachers/{name}"))]
        if run.config.distributed.catalog_parallel == 1:
            # One member after the other: each is loaded whole, whatever slices it was trained in.
            logits = {
                f"teach/{name}": sample_logits(models.load(run.member_folder(name)), run.dataset) for name in names
            }
            found = signs(logits, run.config.training.temperature)
            if fatal := [sign.text for sign in found if sign.stops]:
                raise UserError(
                    f"{'; '.join(fatal)}. Soft labels of it would say nothing. Teach again with --restart teach and a "
                    f"lower training.learning_rate ({run.training.learning_rate:g} now). The members are kept."
                )
            said += [sign.text for sign in found]
        for text in said:
            say(f"warning: {text}")
        return said

    warnings: list[str] = run.runtime.on_main(look)
    return warnings


def check_student(
    run: ActiveRun, name: str, stage: str, say: Callable[[str], None], teachers: Sequence[str] = ()
) -> list[str]:
    """Say what is wrong with the curve of a student of these teachers; what was said.

    Every rank calls this, and rank 0 looks.
    """

    def look() -> list[str]:
        problems = [_curve_problem(run, name), _lag(run, name, teachers)]
        said = [text for text in problems if text]
        for text in said:
            say(f"warning: {text}")
        return [f"{stage}: {text}" for text in said]

    warnings: list[str] = run.runtime.on_main(look)
    return warnings


def _curve_problem(run: ActiveRun, name: str) -> str | None:
    training = read_json(run.path(f"{name}/metrics.json"))
    if (best := training.get("best")) is None:  # of one that was not trained here
        return None
    epochs, limit = len(training.get("epochs", [])), run.training.max_epochs
    rose = epochs == limit and training.get("best_epoch") == limit - 1
    num_rows = run.dataset.splits["valid"].num_rows
    return at_chance(best, run.dataset.num_items, num_rows, rose_to_the_end=limit if rose else None)


def _lag(run: ActiveRun, name: str, teachers: Sequence[str]) -> str | None:
    best, of_teachers = _best(run, name), [_best(run, f"teachers/{teacher}") for teacher in teachers]
    known = [value for value in of_teachers if value is not None]
    return behind_teachers(best, known, run.dataset.splits["valid"].num_rows) if best is not None and known else None


def _best(run: ActiveRun, name: str) -> float | None:
    """The best validation metric of a model; None of one that was not trained here."""
    best: float | None = read_json(run.path(f"{name}/metrics.json")).get("best")
    return best


@torch.no_grad()
def sample_logits(member: SequentialModel, dataset: Dataset) -> torch.Tensor:
    """Logits [N, C] of a member for at most 256 validation rows of a shard, which are dealt out by chance.

    Of at most 4,096 items, evenly spread over the table.
    """
    shard = next(number for number, rows in enumerate(dataset.splits["valid"].shard_rows) if rows)
    batch = to_batch(next(iter(dataset.stream("valid", batch_size=MOST_EXAMPLES, shards=[shard]))))
    histories, _ = question(batch)
    items = torch.arange(0, dataset.num_items, max(1, dataset.num_items // MOST_ITEMS))
    states, table = member.eval().encode_last(histories), member.item_table
    return states @ table.weight[items].T + (0 if table.bias is None else table.bias[items])
