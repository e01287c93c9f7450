"""Several runs side by side; runs that differ only in their seeds are one group, as mean ± standard deviation."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from csrec_dist.evaluation.options import metric_title
from csrec_dist.files import fingerprint
from csrec_dist.report.answer import ALSO, ANSWERED
from csrec_dist.report.document import NONE
from csrec_dist.runs.inputs import repeated_settings
from csrec_dist.runs.run import Run


@dataclass(frozen=True)
class Group:
    """Runs of one setting, and what of it is not the same in all groups."""

    runs: tuple[Run, ...]
    differing: dict[str, str]

    @property
    def name(self) -> str:
        """The runs' names."""
        return ", ".join(run.config.name for run in self.runs)

    @property
    def models(self) -> dict[str, list[dict[str, float]]]:
        """Test metrics of each model in each run, by the model's title."""
        metrics: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
        for run in self.runs:
            for row in run.results:
                metrics[row.title].append(row.test)
        return dict(metrics)

    def values(self, model: str, metric: str) -> list[float]:
        """A model's metric in each run that has it; the model by its name in a run."""
        rows = [row for run in self.runs for row in run.results if row.name == model]
        return [row.test[metric] for row in rows if metric in row.test]


def group_runs(folders: Sequence[Path | str]) -> list[Group]:
    """The runs in groups: those of a group differ in their seed, and perhaps in keys that decide no result.

    A run with the settings and the seed of one before is no other sample, and opens a group of its own.

    Raises:
        UserError: one of the folders is not the folder of a run.
    """
    by_settings: defaultdict[tuple[str, int], list[Run]] = defaultdict(list)
    counts: Counter[tuple[str, int]] = Counter()
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        run = Run.open(folder)
        key = fingerprint(repeated_settings(run.config))
        by_settings[key, counts[key, run.config.seed]].append(run)
        counts[key, run.config.seed] += 1
    groups = list(by_settings.values())
    settings = [repeated_settings(runs[0].config) for runs in groups]
    keys = sorted({key for values in settings for key in values})
    varied = [key for key in keys if len({fingerprint(values.get(key)) for values in settings}) > 1]
    return [
        Group(tuple(runs), {key: str(values[key]) for key in varied if key in values})
        for runs, values in zip(groups, settings, strict=True)
    ]


def runs_table(folders: Sequence[Path | str]) -> Table:
    """The test metrics of several runs side by side, for the terminal.

    Groups are shown as mean ± sample standard deviation. The settings in which groups differ are listed below the
    runs' names.

    Raises:
        UserError: one of the folders is not the folder of a run.
    """
    table = Table(title="full catalog, test", title_justify="left")
    table.add_column("runs", overflow="fold")
    for name in ("model", "seeds", *map(metric_title, (ALSO, ANSWERED))):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for group in group_runs(folders):
        models = group.models
        table.add_row(
            Text("\n".join([group.name, *(f"{key}={value}" for key, value in group.differing.items())])),
            "\n".join(models),
            "\n".join(str(sum(map(bool, rows))) for rows in models.values()),
            *(
                "\n".join(spread([row[name] for row in rows if name in row]) for rows in models.values())
                for name in (ALSO, ANSWERED)
            ),
            end_section=True,
        )
    return table


def spread(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation of several values; a single value unchanged; a dash for none."""
    if not values:
        return NONE
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"
