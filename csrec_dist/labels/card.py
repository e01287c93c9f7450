"""The card of a soft-label cache: whose labels of what, in which form, what it loses, how to read them."""

from collections.abc import Iterator
from pathlib import Path

from csrec_dist import __version__
from csrec_dist.hub import bullets, card, code, table
from csrec_dist.labels.contents import info
from csrec_dist.labels.format import LabelIndex, read_index

HEAD = {"library_name": "csrec_dist", "tags": ["soft-labels", "knowledge-distillation", "sequential-recommendation"]}
USE = """\
from csrec_dist import load_labels, soft_label_loss
from huggingface_hub import snapshot_download

labels = load_labels(snapshot_download("HUB NAME", repo_type="dataset"))  # or the folder
soft = labels.rows(example_ids)  # of some examples, in their order
loss, count = soft_label_loss(states, item_weight, targets, soft, temperature={temperature}, beta=0.5, kl="{kl}")"""


def label_card(folder: Path | str) -> str:
    """The card as Markdown, opened by what the Hub reads; UserError when the folder holds no cache."""
    return card(HEAD, _sections(Path(folder), read_index(folder)))


def _sections(folder: Path, index: LabelIndex) -> Iterator[str]:
    figures = info(folder)
    yield f"# Soft labels of {index.num_examples:,} examples over {index.num_items:,} items"
    yield (
        f"{len(index.members)} teacher{'s' * (len(index.members) > 1)} scored every item for each example. Stored are "
        f"{_form(index)}: {figures['bytes_per_example']:,.0f} bytes an example with everything, {figures['ratio']:.1%} "
        "of dense fp32."
    )
    kl = "forward" if index.form == "topk" else "reverse"
    yield code(USE.format(temperature=index.temperature or 3.0, kl=kl))
    yield "## Content"
    yield table(["", "value"], _content(index))
    yield "## Members"
    rows = [(member.name, str(member.width), member.fingerprint) for member in index.members]
    yield table(["member", "width", "fingerprint of its weights"], rows)
    yield from _measured(index)
    yield "## Limits"
    yield bullets(_limits(index))


def _form(index: LabelIndex) -> str:
    """What is stored of an example, in words."""
    if index.form == "factored":
        return f"the members' states ({sum(index.widths)} numbers), and the members' item tables once"
    if index.form == "dense":
        return f"the logits of all {index.num_items:,} items"
    return f"the {index.keep:,} largest logits with their items, and the log-sum-exp of all"


def _content(index: LabelIndex) -> Iterator[tuple[str, str]]:
    yield "form", f"{index.form}, {index.dtype}"
    yield "combined by", index.combine if index.weights is None else f"{index.combine} {list(index.weights)}"
    if index.temperature is not None:
        yield "temperature", f"{index.temperature:g}, the only one that they are for"
    yield "files", f"{len(index.shards)} shards of examples, {len(index.item_shards)} of item tables, with checksums"
    yield "dataset", f"fingerprint {index.dataset_fingerprint}; item ids {index.id_map_fingerprint}"
    yield "csrec_dist", __version__


def _measured(index: LabelIndex) -> Iterator[str]:
    """What the stored form loses, where that was measured."""
    if index.measured is None:
        return
    measured = index.measured
    yield "## What the form loses"
    yield (
        f"On {measured.num_examples:,} examples at temperature {measured.temperature:g}, KL {measured.kl}: differences "
        "of logits, and the divergence in nats that a student would still have from the exact labels."
    )
    rows = [
        (f"{error.form}, {error.dtype}", f"{error.largest:.2e}", f"{error.mean:.2e}", f"{error.divergence:.2e}")
        for error in measured.errors
    ]
    yield table(["form", "largest difference", "mean", "divergence"], rows)


def _limits(index: LabelIndex) -> Iterator[str]:
    yield (
        "They belong to the training examples of one dataset, by example id. `LabelCache(folder, dataset)` and runs "
        "refuse another dataset than that of the fingerprint above; `load_labels` does not know which one is meant."
    )
    if index.form == "topk":
        yield "The items that are not kept have one common mass; the reverse direction of the divergence is refused."
    yield "They are what the teachers believed of a noisy log, not what users preferred."
