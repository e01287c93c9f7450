"""The examples in docstrings run, each after a run of a small shop was fitted."""

import doctest
from pathlib import Path

import pytest

import csrec_dist.api.dataset
import csrec_dist.api.run
import csrec_dist.recommend.recommender
from csrec_dist import Recommender
from tests.helpers.shop import fit_shop

WITHOUT = {
    "csrec_dist.api.run.CSRec.folder",
    "csrec_dist.api.dataset.Dataset.push_to_hub",
    "csrec_dist.recommend.recommender.Recommender.of_run",
    "csrec_dist.recommend.recommender.Recommender.push_to_hub",  # tests/helpers/hub.py is a server for them
}
MODULES = (csrec_dist.api.dataset, csrec_dist.api.run, csrec_dist.recommend.recommender)
EXAMPLES = [test for module in MODULES for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """The folder that the examples run in, and what they go on from."""
    folder = tmp_path_factory.mktemp("shop")
    data, run = fit_shop(folder)
    return folder, {"data": data, "run": run, "rec": Recommender.from_pretrained(folder / "runs/shop")}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_example_of_a_docstring(
    example: doctest.DocTest, shop: tuple[Path, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = shop
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "500")  # for rich
    example.globs = {**example.globs, **names}
    said: list[str] = []
    result = doctest.DocTestRunner().run(example, out=said.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(said)


def test_every_method_of_the_api_has_an_example() -> None:
    named = {example.name for example in EXAMPLES}
    for module, owner in (
        ("csrec_dist.api.run", csrec_dist.CSRec),
        ("csrec_dist.api.dataset", csrec_dist.Dataset),
        ("csrec_dist.recommend.recommender", Recommender),
    ):
        public = [name for name in vars(owner) if not name.startswith("_") and vars(owner)[name].__doc__]
        lacking = {f"{module}.{owner.__name__}.{name}" for name in public} - named
        assert lacking <= WITHOUT
