"""A small study, and made-up results of one, for the tests of studies."""

from pathlib import Path

from csrec_dist.experiments.study.spec import Entry, Study, load_study

BASE = """
name: base
dataset: {{source: {log}, window: 8, min_interactions: 3, num_shards: 4}}
model: {{name: gru4rec, width: 8, hidden: 8, dropout: 0}}
training: {{max_epochs: 1, batch_size: 16}}
evaluation: {{top_n: [10], calibration: false}}
"""
STUDY = """
title: A small study
config: base.yaml
seeds: [0, 1]
axes:
  method:
    Base: {method: base}
    CSRec-M: {method: model_level, teachers.seed: 5}
  temperature:
    1: {training.temperature: 1}
    3: {training.temperature: 3}
skip: [{method: Base, temperature: 1}]
adjust: [{when: {method: CSRec-M, temperature: ["3"]}, set: {training.beta: 0.25}}]
tables:
  - {rows: [temperature], columns: method, metrics: [ndcg@10], better_than: [Base], costs: true}
  - {title: At one, where: {temperature: 1}, rows: [temperature], columns: method, metrics: [ndcg@10]}
figures: [{name: curve, x: temperature, lines: method}]
published: [{when: {method: Base}, values: {ndcg@10: 12.5}}]
"""
PART = """
title: A part of it
part_of: small
only: {temperature: 3}
curves: [{name: items, title: Popularity}]
figures: [{name: groups, x: popularity, lines: method, style: bars, metric: recall@10}]
tables: [{rows: [method], columns: temperature, metrics: [popularity/rest_80%/ndcg@10, teacher/ndcg@10, lists/gini@10]}]
"""


def write_study(folder: Path, log: Path) -> Path:
    """The small study's file, with its base config and a part of it beside."""
    (folder / "base.yaml").write_text(BASE.format(log=log))
    (folder / "part.yaml").write_text(PART)
    (folder / "small.yaml").write_text(STUDY)
    return folder / "small.yaml"


def entries_of(path: Path) -> tuple[Study, list[Entry]]:
    """The study of a file, and its runs beside that."""
    study = load_study(path)
    return study, list(study.entries(path.parent / "runs", {}))
