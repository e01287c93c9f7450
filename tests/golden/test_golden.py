"""The numbers of small runs are those of digits.json, and the comparison of two versions names what differs."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.golden.cases import CASES, Case, fitting_spelling
from tests.golden.compare import DIGITS, digits
from tests.golden.runs import do_case
from tests.golden.summary import differences, summarize

LOSS_TOLERANCE = 1e-4
"""Of a loss: the instruction sets of one machine (ATEN_CPU_CAPABILITY, MKL_CBWR, DNNL_MAX_CPU_ISA) differ by 2e-5."""
METRIC_TOLERANCE = 0.02
"""Where two scores are nearly equal, one of the 60 test rows may change its rank; it never did on one machine."""
ALWAYS = {"1/model_level/gru4rec", "1/model_level/sasrec"}


@pytest.fixture(scope="module")
def spelling(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return fitting_spelling(tmp_path_factory.mktemp("plan"))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case.name in ALWAYS else pytest.mark.long, id=case.name) for case in CASES]
)
def test_the_numbers_are_those_written_down_and_no_rule_of_health_warns(
    case: Case, tmp_path: Path, spelling: dict[str, str]
) -> None:
    written = json.loads(DIGITS.read_text())[case.name]
    said = do_case(case, tmp_path / "case", spelling)
    now = digits(summarize(tmp_path / "case/run"))
    # In so few steps BERT4Rec comes no further than random lists of 60 rows may.
    assert case.model == "bert4rec" or "warning:" not in said, said
    assert now["losses"].keys() == written["losses"].keys()
    for name, curve in written["losses"].items():
        assert now["losses"][name] == pytest.approx(curve, rel=LOSS_TOLERANCE), name
    assert now["metrics"] == pytest.approx(written["metrics"], abs=METRIC_TOLERANCE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with a model, labels and metrics."""
    for name in ("student", "labels"):
        (tmp_path / name).mkdir()
    save_file({"weight": torch.tensor([1.0, 2.0]), "bias": torch.tensor([0.0])}, tmp_path / "student/model.safetensors")
    save_file({"states": torch.tensor([0.5], dtype=torch.bfloat16)}, tmp_path / "labels/labels.safetensors")
    (tmp_path / "metrics.json").write_text('{"test": {"ndcg@10": 0.25}, "seconds": 1.5}')
    return tmp_path


def test_files_headers_and_times_are_no_difference(folder: Path) -> None:
    before = summarize(folder)
    save_file(
        {"bias": torch.tensor([0.0]), "weight": torch.tensor([1.0, 2.0])},
        folder / "student/model.safetensors",
        {"options": "renamed"},
    )
    (folder / "metrics.json").write_text('{"seconds": 2.5, "test": {"ndcg@10": 0.25}}')
    assert differences(before, summarize(folder)) == []


def test_the_lowest_bit_of_a_weight_is_named(folder: Path) -> None:
    before = summarize(folder)
    weight = torch.tensor([1.0, 2.0]).nextafter(torch.tensor([1.0, 3.0]))
    save_file({"weight": weight, "bias": torch.tensor([0.0])}, folder / "student/model.safetensors")
    assert [each.name for each in differences(before, summarize(folder))] == ["weights student/model:weight"]


def test_labels_of_another_type_are_named(folder: Path) -> None:
    before = summarize(folder)
    save_file({"states": torch.tensor([0.5], dtype=torch.float16)}, folder / "labels/labels.safetensors")
    [difference] = differences(before, summarize(folder))
    assert str(difference).startswith("labels labels/labels:states: bfloat16 [1] ")


def test_a_new_name_of_the_same_content_is_no_difference(folder: Path) -> None:
    before = summarize(folder)
    (folder / "student").rename(folder / "model")
    (folder / "metrics.json").write_text('{"held_out": {"ndcg@10": 0.25}}')
    assert differences(before, summarize(folder)) == []


def test_a_tensor_more_or_less_is_named(folder: Path) -> None:
    before = summarize(folder)
    save_file({"weight": torch.tensor([1.0, 2.0])}, folder / "student/model.safetensors")
    after = summarize(folder)
    assert [each.head for each in differences(before, after)] == [None]
    assert [each.base for each in differences(after, before)] == [None]


@pytest.mark.parametrize(("after", "step"), [([3.0, 2.5, 2.0], 2), ([3.0, 2.75], 3), ([3.0, 2.75, 2.0, 1.0], 4)])
def test_the_first_step_at_which_curves_part_is_named(after: list[float], step: int) -> None:
    base = {"losses": {"student": [3.0, 2.75, 2.0]}, "metrics": {}}
    head = copy.deepcopy(base)
    head["losses"]["student"] = after
    assert [each.step for each in differences(base, head)] == [step]
