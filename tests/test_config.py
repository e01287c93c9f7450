"""The configuration: everything wrong is said at once, with the nearest right name; every shipped config loads."""

import re
from pathlib import Path
from typing import get_args

import pytest

from csrec_dist.config import load_config, parse_config
from csrec_dist.config.page import page
from csrec_dist.errors import UserError
from csrec_dist.experiments.study.spec import load_study
from csrec_dist.losses import DIVERGENCES
from csrec_dist.training.options import Direction

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = sorted((ROOT / "configs/experiments").glob("*.yaml"))
GOOD = {"name": "x", "dataset": {"source": "ml-100k"}, "model": {"name": "sasrec"}}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_is_named_after_its_file(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_all_mistakes_are_listed_with_the_nearest_names() -> None:
    wrong = {
        "name": "a b",
        "dataset": {"source": "ml-100k", "windw": 20, "windows": "papr"},
        "model": {"name": "sasrek"},
        "teachers": {"num": 0, "model": {"name": "gru4rec", "hiden": 3}},
        "training": {"batch_size": "many", "betta": 1},
        "labels": {"form": "sparse"},
        "evaluation": {"top_n": [0]},
    }
    with pytest.raises(UserError) as caught:
        parse_config(wrong)
    text = str(caught.value)
    for expected in [
        "dataset.windw: unknown key; did you mean window?",
        "dataset.windows:",
        "'sasrek' is not a model; did you mean sasrec?",
        "teachers.model.hiden: unknown key; did you mean hidden?",
        "teachers.num:",
        "training.batch_size:",
        "training.betta: unknown key; did you mean beta?",
        "labels.form:",
        "evaluation",
        "name:",
    ]:
        assert expected in text
    assert text.startswith("The configuration has 10 mistakes")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", {"name": ["sasrec"]}),
        ("training", {"temperature": float("inf")}),
        ("training", {"batch_size": True}),
        ("training", {"batch_size": 3.0}),
        ("training", {"kl": "sideways"}),
        ("training", {"learning_rate": 1e30}),
        ("seed", 3.0),
        ("name", ".."),
        ("method", "magic"),
        ("model", {"name": "sasrec", "dropout": float("nan")}),
    ],
)
def test_values_of_the_wrong_kind_are_refused(key: str, value: object) -> None:
    with pytest.raises(UserError, match=key):
        parse_config(GOOD | {key: value})


def test_empty_sections_and_numbers_as_names_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: 5\ndataset: {source: ml-100k}\nmodel: {name: sasrec}\nteachers:\n")
    config = load_config(path, ["teachers.num=3"])
    assert (config.name, config.teachers.num) == ("5", 3)
    assert load_config(path).teachers.num == 2


def test_the_directions_of_the_config_are_those_that_the_losses_have() -> None:
    assert set(get_args(Direction)) == set(DIVERGENCES)


def test_impossible_combinations_are_refused() -> None:
    with pytest.raises(UserError, match="has no members"):
        parse_config(GOOD | {"method": "base", "teachers": {"pretrained": ["x"]}})
    with pytest.raises(UserError, match="is already the baseline"):
        parse_config(GOOD | {"method": "base", "baseline": True})
    with pytest.raises(UserError, match=r"teachers\.trust_item_order: there are no pretrained members"):
        parse_config(GOOD | {"teachers": {"trust_item_order": True}})
    with pytest.raises(UserError, match="pretrained lists 2 members"):
        parse_config(GOOD | {"teachers": {"pretrained": ["x", "y"], "num": 3}})
    with pytest.raises(UserError, match="source"):
        parse_config(GOOD | {"dataset": {}})
    with pytest.raises(UserError, match="cl4srec contrasts the windows of a whole batch"):
        parse_config(GOOD | {"teachers": {"model": {"name": "cl4srec"}}, "training": {"accumulate": 2}})
    with pytest.raises(UserError, match="engine deepspeed needs a file"):
        parse_config(GOOD | {"distributed": {"engine": "deepspeed"}})


def test_engine_deepspeed_takes_the_launchers_settings_unless_it_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: x\ndataset: {source: ml-100k}\nmodel: {name: sasrec}\n")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "launcher.json")
    config = load_config(path, ["distributed.engine=deepspeed"])
    assert config.distributed.deepspeed == "launcher.json"
    own = load_config(path, ["distributed.engine=deepspeed", "distributed.deepspeed=own.json"])
    assert own.distributed.deepspeed == "own.json"
    assert load_config(path, ["distributed.engine=fsdp"]).distributed.deepspeed is None
    (tmp_path / "resolved.yaml").write_text(config.to_yaml())
    monkeypatch.delenv("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    assert load_config(tmp_path / "resolved.yaml") == config
    with pytest.raises(UserError, match="or the launcher's --deepspeed_config_file"):
        load_config(path, ["distributed.engine=deepspeed"])


def test_overrides_reach_nested_keys(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: x\ndataset: {source: ml-100k}\nmodel: {name: sasrec}\n")
    config = load_config(path, ["training.beta=0.75", "evaluation.top_n=[3]", "seed=4"])
    assert (config.training.beta, config.evaluation.top_n, config.seed) == (0.75, [3], 4)
    with pytest.raises(UserError, match=r"section\.key=value"):
        load_config(path, ["training.beta"])
    with pytest.raises(UserError, match="is a value, not a section"):
        load_config(path, ["name.first=x"])


@pytest.mark.parametrize("teachers", [{"model": {"name": "gru4rec", "hidden": 7}}, {"pretrained": ["x"]}])
def test_the_resolved_config_reads_back_as_itself(tmp_path: Path, teachers: dict) -> None:
    config = parse_config(GOOD | {"teachers": teachers})
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "c.yaml") == config


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "!!python/object/apply:os.system ['true']"])
def test_files_that_hold_no_config_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError):
        load_config(path)
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "none.yaml")


def test_the_page_of_all_keys_is_up_to_date() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == page(), "run python -m csrec_dist.config.page"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: x\nseed: 1\ndataset: {source: s}\nseed: 2\n", "seed occurs twice in lines 2 and 4"),
        ("name: x\ntraining:\n  beta: 0.5\n  kl: forward\n  beta: 0.7\n", "beta occurs twice in lines 3 and 5"),
        ("name: x\ntraining: {beta: 0.5, beta: 0.5}\n", "beta occurs twice in line 2"),
        ("name: x\nmodel: {name: sasrec}\nmodel: {name: narm}\n", "model occurs twice in lines 2 and 3"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_lines(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    for read in (load_config, load_study):
        with pytest.raises(UserError, match=rf"config\.yaml: {words}"):
            read(path)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.beta=0.5", "training.beta=0.75"], "training.beta is given twice, with 0.5 and 0.75"),
        (["model.width=8", "model={name: narm}"], "model=… would undo the earlier --set model.width=…"),
        (["training={beta: 0.5, beta: 0.75}"], "beta occurs twice in line 1"),
    ],
)
def test_overrides_that_undo_each_other_are_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("name: x\ndataset: {source: s}\nmodel: {name: sasrec}\n")
    with pytest.raises(UserError, match=re.escape(words)):
        load_config(path, overrides)


def test_overrides_that_agree_or_refine_a_section_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("name: x\ndataset: {source: s}\nmodel: {name: sasrec}\n")
    config = load_config(path, ["model={name: narm}", "model.width=8", "seed=3", "seed=3"])
    assert (config.model.name, config.model.width, config.seed) == ("narm", 8, 3)


def test_keys_of_a_model_that_is_a_name_are_set(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: a\ndataset: {source: ml-100k}\nmodel: sasrec\nteachers: {model: gru4rec}\n")
    config = load_config(path, ["model.width=32", "teachers.model.width=16"])
    assert (config.model.name, config.model.width) == ("sasrec", 32)
    assert config.teachers.model.width == 16
    again = load_config(path, ["model=narm", "model.width=8"])
    assert (again.model.name, again.model.width) == ("narm", 8)
