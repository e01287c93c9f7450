"""Distil a small language model offline, from factored soft labels, with the loss of csrec_dist in a loop of its own.

    python examples/language_model.py                      # two minutes on two cores; nothing is downloaded
    python examples/language_model.py --steps 20           # a quick look

A language model scores like a recommender: logits = h · Eᵀ, with h the last hidden state and E the output embedding.
So the mean logits of m teachers are kept as m·d numbers a token instead of one number for each word of the vocabulary,
and the student's loss reads them without ever making logits of tokens × vocabulary. The text is Python's own
documentation of its keywords, which every interpreter has.
"""

import argparse
import math
import re
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from csrec_dist import soft_label_loss
from csrec_dist.losses import DenseLabels, FactoredLabels, cross_entropy

WINDOW = 64  # tokens that a model reads at once
BATCH = 16  # windows
TEACHER_SEEDS = (1, 2)


def read_text(most_words: int) -> tuple[Tensor, Tensor, int]:
    """Windows [n, WINDOW + 1] of word numbers for training and for validation, and the size of the vocabulary."""
    words = re.findall(r"\w+|[^\w\s]", " ".join(topics[name] for name in sorted(topics)))
    known = [word for word, _ in Counter(words).most_common(most_words - 1)]
    number_of = {word: number for number, word in enumerate(known, start=1)}  # 0 is any other word
    numbers = torch.tensor([number_of.get(word, 0) for word in words])
    windows = numbers[: len(numbers) // (WINDOW + 1) * (WINDOW + 1)].view(-1, WINDOW + 1)
    windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))]
    num_valid = len(windows) // 10
    return windows[num_valid:], windows[:num_valid], len(known) + 1


def build(num_words: int, width: int, layers: int, seed: int) -> GPT2LMHeadModel:
    """A model with random weights, from a config."""
    torch.manual_seed(seed)
    sizes = {"n_embd": width, "n_layer": layers, "n_head": max(1, width // 32), "n_positions": WINDOW}
    return GPT2LMHeadModel(GPT2Config(vocab_size=num_words, bos_token_id=0, eos_token_id=0, **sizes))


def states_of(model: GPT2LMHeadModel, windows: Tensor) -> Tensor:
    """The last hidden state at each token that has a next one: [windows · WINDOW, width]."""
    return model.transformer(windows[:, :-1]).last_hidden_state.flatten(0, 1)


def targets_of(windows: Tensor) -> Tensor:
    """The next words, numbered from 1 as the losses have them: row i of the table is number i + 1."""
    return windows[:, 1:].flatten() + 1


def train(model: GPT2LMHeadModel, windows: Tensor, steps: int, labels: FactoredLabels | None = None) -> None:
    """Train on the next words, and on soft labels where there are some: row i is that of the text's i-th token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    order = torch.Generator().manual_seed(7)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(windows), (BATCH,), generator=order)
        states, targets = states_of(model, windows[rows]), targets_of(windows[rows])
        table = model.lm_head.weight
        if labels is None:
            loss, count = cross_entropy(states, table, targets)
        else:
            tokens = (rows[:, None] * WINDOW + torch.arange(WINDOW)).flatten()
            soft = FactoredLabels(labels.states[tokens].float(), labels.item_weight)
            loss, count = soft_label_loss(states, table, targets, soft, temperature=1.0, beta=0.5, kl="forward")
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def write_labels(teachers: list[GPT2LMHeadModel], windows: Tensor, path: Path) -> None:
    """Every token's states of all teachers side by side, over m, in half precision; the tables side by side, once."""
    parts = []
    for batch in windows.split(BATCH):
        states = torch.cat([states_of(teacher.eval(), batch) for teacher in teachers], 1)
        parts.append((states / len(teachers)).half())
    table = torch.cat([teacher.lm_head.weight for teacher in teachers], 1)
    save_file({"states": torch.cat(parts), "item_weight": table}, path)


def read_labels(path: Path) -> FactoredLabels:
    """The labels of a file."""
    tensors = load_file(path)
    return FactoredLabels(tensors["states"], tensors["item_weight"])


@torch.no_grad()
def largest_difference(teachers: list[GPT2LMHeadModel], windows: Tensor, labels: FactoredLabels) -> dict[str, float]:
    """How far the loss from stored factors is from that of the teachers' dense mean logits, on a few windows."""
    some = windows[:2]
    dense = torch.stack([teacher.eval()(some[:, :-1]).logits.flatten(0, 1) for teacher in teachers]).mean(0)
    states = torch.cat([states_of(teacher, some) for teacher in teachers], 1) / len(teachers)
    exact = FactoredLabels(states, labels.item_weight)
    stored = FactoredLabels(labels.states[: len(states)].float(), labels.item_weight)
    student = torch.randn(len(states), 32, generator=torch.Generator().manual_seed(0))
    table = torch.randn(labels.num_items, 32, generator=torch.Generator().manual_seed(1))

    def loss_of(soft: FactoredLabels | DenseLabels) -> float:
        total, count = soft_label_loss(student, table, targets_of(some), soft, temperature=1.0, beta=0.5, kl="reverse")
        return (total / count).item()

    whole = loss_of(DenseLabels(dense))
    return {"exact": abs(loss_of(exact) / whole - 1), "stored": abs(loss_of(stored) / whole - 1)}


@torch.no_grad()
def perplexity(model: GPT2LMHeadModel, windows: Tensor) -> float:
    """exp of the mean cross-entropy of the next word."""
    losses = [cross_entropy(states_of(model.eval(), w), model.lm_head.weight, targets_of(w)) for w in windows.split(64)]
    return math.exp(sum(loss.item() for loss, _ in losses) / sum(count.item() for _, count in losses))


def main() -> None:
    """Train teachers, write their labels, train a student without and with them, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of each training (400)")
    parser.add_argument("--words", type=int, default=8000, help="size of the vocabulary (8000)")
    parser.add_argument("--labels", type=Path, default=Path("language_model_labels.safetensors"), help="file to write")
    options = parser.parse_args()
    train_windows, valid_windows, num_words = read_text(options.words)
    num_tokens = len(train_windows) * WINDOW
    print(f"{num_tokens:,} tokens in {len(train_windows):,} windows, a vocabulary of {num_words:,}")

    teachers = [build(num_words, width=128, layers=2, seed=seed) for seed in TEACHER_SEEDS]
    for seed, teacher in zip(TEACHER_SEEDS, teachers, strict=True):
        train(teacher, train_windows, options.steps)
        print(f"teacher {seed}: perplexity {perplexity(teacher, valid_windows):.1f}")

    write_labels(teachers, train_windows, options.labels)
    labels = read_labels(options.labels)
    stored, dense = labels.states[0].nbytes, 2 * num_words
    print(f"labels: {stored:,} bytes a token; dense in half precision: {dense:,}")
    difference = largest_difference(teachers, train_windows, labels)
    print(f"loss against dense logits: {difference['exact']:.1e} off, as stored {difference['stored']:.1e}")

    for name, soft in (("one-hot labels alone", None), ("with soft labels", labels)):
        student = build(num_words, width=64, layers=1, seed=3)
        train(student, train_windows, options.steps, soft)
        print(f"student, {name}: perplexity {perplexity(student, valid_windows):.1f}")


if __name__ == "__main__":
    main()
