"""Windows and rows against slices of plain Python lists."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrec_dist.data.log import k_core, renumber
from csrec_dist.data.shards import covered, deal, indices
from csrec_dist.data.windows import Periods, Spans, cut_windows, leave_one_out, temporal, temporal_cuts

RULES = ("disjoint", "paper", "last")
sequence_lengths = st.lists(st.integers(0, 30), min_size=1, max_size=6)


def sliced(sequence: list[int], window: int, rule: str, min_head: int) -> list[list[int]]:
    """The windows of one sequence, oldest first."""
    if len(sequence) <= window:
        return [sequence] if sequence else []
    found = []
    rest = sequence
    while len(rest) >= window:
        found.insert(0, rest[-window:])
        rest = rest[:-window]
    if rule == "last":
        return found[-1:]
    if rule == "paper" and rest:
        found.insert(0, sequence[:window])
    if rule == "disjoint" and len(rest) >= min_head:
        found.insert(0, rest)
    return found


def contents(spans: Spans) -> list[tuple[int, list[int]]]:
    return [(int(u), list(range(a, b))) for u, a, b in zip(spans.users, spans.starts, spans.stops, strict=True)]


@given(sequence_lengths, st.integers(3, 9), st.sampled_from(RULES), st.integers(1, 6))
def test_windows_are_the_slices(lengths, window, rule, min_head):
    lengths = np.array(lengths)
    offsets = np.cumsum(lengths) - lengths
    expected = [
        (user, part)
        for user, (offset, length) in enumerate(zip(offsets.tolist(), lengths.tolist(), strict=True), 1)
        for part in sliced(list(range(offset, offset + length)), window, rule, min_head)
    ]
    windows = cut_windows(offsets, lengths, window, rule, min_head)
    assert contents(windows) == expected
    splits = leave_one_out(windows)
    whole = [(user, part) for user, part in expected if len(part) >= 3]
    train = [(user, part[:-2] if len(part) >= 3 else part) for user, part in expected]
    assert contents(splits["test"]) == whole
    assert contents(splits["valid"]) == [(user, part[:-1]) for user, part in whole]
    assert contents(splits["train"]) == [(user, part) for user, part in train if len(part) >= 2]


@given(st.data(), sequence_lengths, st.integers(3, 6), st.sampled_from(RULES))
def test_temporal_rows_are_cut_at_two_times(data, lengths, window, rule):
    times = [sorted(data.draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))) for n in lengths]
    flat = np.array([time for user in times for time in user])
    if not len(flat):
        return
    first, second = temporal_cuts(flat, (0.6, 0.2, 0.2))
    ordered = sorted(flat.tolist())
    assert (first, second) == (ordered[int(0.6 * len(flat))], ordered[int(0.8 * len(flat))])
    lengths = np.array(lengths)
    offsets = np.cumsum(lengths) - lengths
    before = tuple(np.array([sum(t < cut for t in user) for user in times]) for cut in (first, second))
    splits = temporal(offsets, Periods(*before, lengths), window, rule, 2)
    expected = {"train": [], "valid": [], "test": []}
    for user, (offset, own) in enumerate(zip(offsets.tolist(), times, strict=True), 1):
        past = [offset + i for i, t in enumerate(own) if t < first]
        expected["train"] += [(user, part) for part in sliced(past, window, rule, 2) if len(part) >= 2]
        for split, low, high in (("valid", first, second), ("test", second, np.inf)):
            targets = [i for i, t in enumerate(own) if low <= t < high]
            if targets and (targets[0] > 0 or len(targets) > 1):
                end = offset + (targets[0] or targets[-1]) + 1
                expected[split].append((user, list(range(max(offset, end - window), end))))
    assert {split: contents(spans) for split, spans in splits.items()} == expected


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40), st.integers(1, 4), st.booleans())
def test_k_core_keeps_what_a_loop_keeps(pairs, minimum, iterated):
    kept = list(range(len(pairs)))
    while True:
        users = [pairs[i][0] for i in kept]
        items = [pairs[i][1] for i in kept]
        left = [i for i, u, v in zip(kept, users, items, strict=True) if users.count(u) >= minimum <= items.count(v)]
        done = left == kept or not iterated
        kept = left
        if done:
            break
    users, items = (np.array([pair[side] for pair in pairs], np.int32) for side in (0, 1))
    assert k_core(users, items, minimum, iterated).tolist() == kept


def test_renumber_keeps_the_order_and_closes_gaps():
    new, old = renumber(np.array([7, 2, 7, 4]))
    assert new.tolist() == [3, 1, 3, 2]
    assert old.tolist() == [2, 4, 7]


@settings(max_examples=30)
@given(st.integers(0, 50), st.integers(1, 9), st.integers(0, 3))
def test_shards_share_the_rows_evenly(num_rows, num_shards, seed):
    shards = deal(num_rows, num_shards, seed)
    assert sorted(np.concatenate(shards).tolist()) == list(range(num_rows))
    sizes = [len(rows) for rows in shards]
    assert max(sizes) - min(sizes) <= 1
    assert all((a == b).all() for a, b in zip(shards, deal(num_rows, num_shards, seed), strict=True))


def test_the_dealing_is_frozen():
    """Another order would move every example of datasets that exist already."""
    assert [rows.tolist() for rows in deal(7, 3, 0)] == FROZEN


FROZEN = [[6, 3, 4], [2, 0], [1, 5]]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=6))
def test_spans_cover_and_list_their_places(pairs):
    starts = np.array([start for start, _ in pairs], np.int64)
    stops = np.array([start + length for start, length in pairs], np.int64)
    listed = [place for start, length in pairs for place in range(start, start + length)]
    assert indices(starts, stops).tolist() == listed
    spans = Spans(np.ones(len(pairs), np.int64), starts, stops)
    assert np.flatnonzero(covered(spans, 20)).tolist() == sorted(set(listed))


@pytest.mark.parametrize("rule", RULES)
def test_a_sequence_of_one_window_stays_whole(rule):
    windows = cut_windows(np.array([0, 5]), np.array([5, 2]), 5, rule, 5)
    assert contents(windows) == [(1, [0, 1, 2, 3, 4]), (2, [5, 6])]
