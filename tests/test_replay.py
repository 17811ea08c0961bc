"""Replay: what is drawn, what is removed, and that nothing is torn, lost or there twice."""

import multiprocessing

import numpy as np
import pytest

import replay

FIELDS = {"x": ((3,), np.float32), "y": ((1,), np.float32), "image": ((2, 2, 3), np.uint8)}


def make(capacity=100, sampling="uniform", actors=1, ring=16, fields=None):
    items = replay.Items(fields or {"x": ((1,), np.float32)}, capacity, actors, ring)
    return items, replay.Replay(items, sampling)


def fill(items, memory, count, actor=0):
    """Items whose number is how many were written before them."""
    for i in range(count):
        items.write(actor, {"x": np.array([[fill.next]])})
        fill.next += 1
        if items.room(actor) == 0 or i == count - 1:
            memory.collect()


@pytest.fixture(autouse=True)
def _count_from_zero():
    fill.next = 0


def values(items, memory):
    return items.shared.rows[memory.index.live(), 0]


def test_what_was_written_is_what_is_sampled():
    items, memory = make(capacity=10, fields=FIELDS)
    rng = np.random.default_rng(0)
    written = {
        "x": rng.normal(size=(5, 3)).astype(np.float32),
        "y": np.arange(5, dtype=np.float32)[:, None],
        "image": rng.integers(256, size=(5, 2, 2, 3), dtype=np.uint8),
    }
    items.write(0, written)
    assert memory.collect() == len(memory) == 5
    _, weights, batch = memory.sample(64)
    which = batch["y"][:, 0].long().numpy()
    assert weights is None
    assert set(which) == set(range(5))
    for name, value in written.items():
        np.testing.assert_array_equal(batch[name].numpy(), value[which])


@pytest.mark.parametrize("sampling", ["uniform", "prioritised"])
def test_memory_never_holds_more_than_its_capacity_and_no_slot_twice(sampling):
    items, memory = make(capacity=30, sampling=sampling, actors=2, ring=7)
    for round in range(100):
        fill(items, memory, 1 + round % 7, actor=round % 2)
        live = memory.index.live()
        lent = [
            items.shared.numbers[k, np.arange(items.shared.filled[k], items.shared.given[k]) % 7]
            for k in range(2)
        ]
        everywhere = np.concatenate([live, *lent, np.arange(memory.used, items.slots)])
        assert sorted(everywhere) == list(range(items.slots))
        assert len(live) == len(memory) <= 30
    assert len(memory) == 30


def test_the_first_in_is_the_first_out():
    items, memory = make(capacity=20, ring=5)
    for _ in range(13):
        fill(items, memory, 5)
        newest = np.arange(fill.next)[-20:]
        np.testing.assert_array_equal(values(items, memory), newest)


def test_uniform_sampling_draws_each_item_equally_often():
    items, memory = make(capacity=50, ring=8)
    fill(items, memory, 120)
    slots, _, _ = memory.sample(100_000)
    counts = np.bincount(items.shared.rows[slots, 0].astype(int), minlength=120)
    assert (counts[:70] == 0).all()
    assert chi_square(counts[70:], np.full(50, 1 / 50)) < limit(50)


def chi_square(counts, chance):
    expected = counts.sum() * chance
    return ((counts - expected) ** 2 / expected).sum()


def limit(cells):
    """Five standard deviations over what a chi-square of as many cells comes to."""
    return cells - 1 + 5 * np.sqrt(2 * (cells - 1))


@pytest.mark.parametrize("turnover", [0, 3])
def test_prioritised_sampling_is_exact_over_a_million_draws_also_after_removals(turnover):
    items, memory = make(capacity=1000, sampling="prioritised", ring=64)
    rng = np.random.default_rng(turnover)
    fill(items, memory, 1000)
    for _ in range(turnover):  # memory wraps around; priorities change all the while
        memory.update(memory.index.live(), rng.pareto(1.5, len(memory)) + 1e-3)
        fill(items, memory, 500)
    slots = memory.index.live()
    priority = rng.pareto(1.5, len(slots)) + 1e-3  # far from equal
    memory.update(slots, priority)
    wanted = priority**0.6 / (priority**0.6).sum()
    counts, drawn = np.zeros(items.slots), 0
    while drawn < 1_000_000:
        picked, weights, _ = memory.sample(10_000)
        np.add.at(counts, picked, 1)
        drawn += 10_000
    assert counts.sum() == counts[slots].sum() == 1_000_000  # nothing that is not in memory
    assert chi_square(counts[slots], wanted) < limit(len(slots))
    expected = (len(slots) * wanted[np.searchsorted(slots, picked)]) ** -0.4
    np.testing.assert_allclose(weights.numpy(), expected / expected.max(), rtol=1e-5)


def test_prioritised_removal_prefers_what_has_little_priority_by_the_power_of_its_inverse():
    removed, wanted = np.zeros(64), np.zeros(64)
    priority = np.geomspace(0.01, 10, 64)
    for seed in range(4000):
        index, rng = replay.Prioritised(64), np.random.default_rng(seed)
        index.add(np.arange(64))
        index.update(np.arange(64), priority)
        np.add.at(removed, index.removal.draw(rng, 20), 1)
        removed[index.remove(rng, 1)] += 1
    wanted = priority**-0.4 / (priority**-0.4).sum()
    assert chi_square(removed, wanted) < limit(64)


def test_removing_many_at_once_removes_as_many_different_ones():
    index, rng = replay.Prioritised(1000), np.random.default_rng(0)
    index.add(np.arange(1000))
    index.update(np.arange(1000), rng.random(1000))
    removed = index.remove(rng, 900)
    assert len(set(removed)) == 900
    assert set(removed) | set(index.live()) == set(range(1000))
    assert index.count == len(index.live()) == 100


def test_what_was_removed_is_not_revived_by_a_late_priority():
    index, rng = replay.Prioritised(10), np.random.default_rng(0)
    index.add(np.arange(10))
    gone = index.remove(rng, 4)
    index.update(np.arange(10), np.full(10, 3.0))
    assert not set(gone) & set(index.live())
    assert not set(gone) & set(index.draw(rng, 1000)[0])


def test_new_items_get_the_highest_priority_seen():
    index = replay.Prioritised(10)
    index.add(np.arange(3))
    index.update(np.arange(3), np.array([0.5, 7.0, 2.0]))
    index.add(np.array([5]))
    assert index.chance.weights[5] == 7.0**0.6


def test_sums_stay_exact_after_a_hundred_thousand_changes():
    sums, rng = replay.SumTree(1000), np.random.default_rng(0)
    for _ in range(1000):
        sums.set(rng.integers(1000, size=100), rng.random(100) * 10.0 ** rng.integers(-8, 8))
    padded = np.pad(sums.weights[:1000], (0, 24))
    np.testing.assert_array_equal(sums.sums, padded.reshape(-1, 64).sum(1))


@pytest.mark.parametrize("sampling", ["uniform", "prioritised"])
def test_what_is_kept_stays_for_good(sampling):
    items, memory = make(capacity=40, sampling=sampling, ring=8)
    fill(items, memory, 10)
    memory.index.keep()
    for _ in range(20):
        fill(items, memory, 16)
        memory.update(memory.index.live(), np.full(len(memory), 5.0))
    here = set(values(items, memory))
    assert set(range(10)) < here
    assert len(here) == len(memory) == 40
    drawn = np.bincount(items.shared.rows[memory.sample(40_000)[0], 0].astype(int))
    assert chi_square(drawn[drawn > 0], np.full(40, 1 / 40)) < limit(40)


@pytest.mark.parametrize("sampling", ["uniform", "prioritised"])
def test_a_memory_that_was_saved_goes_on_as_if_it_had_not_been(sampling):
    pairs = [make(capacity=50, sampling=sampling, ring=8) for _ in range(2)]
    (items, memory), (other, copy) = pairs
    fill(items, memory, 20)
    memory.index.keep()
    fill(items, memory, 110)
    memory.update(memory.index.live(), np.linspace(0.1, 3, len(memory)))
    copy.load(memory.state())
    for _ in range(60):
        start = fill.next
        fill(items, memory, 8)
        fill.next = start
        fill(other, copy, 8)
        mine, weights, batch = memory.sample(32)
        theirs, other_weights, other_batch = copy.sample(32)
        np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(batch["x"], other_batch["x"])
        assert weights is None or (weights == other_weights).all()
    assert set(range(20)) < set(values(other, copy))


def test_an_actor_cannot_write_more_than_it_was_lent():
    items, _ = make(ring=4)
    items.write(0, {"x": np.zeros((3, 1))})
    with pytest.raises(RuntimeError, match="2 items for 1 free slots"):
        items.write(0, {"x": np.zeros((2, 1))})


def test_an_item_that_was_published_unfinished_is_noticed():
    items, memory = make()
    items.shared.filled[0] += 1
    items.shared.serial[items.shared.numbers[0, 0]] = -1
    with pytest.raises(RuntimeError, match="actor 0 published an item that it had not finished"):
        memory.collect()


def test_memory_that_is_not_there_is_an_error_that_names_the_flag():
    with pytest.raises(MemoryError, match=r"GB are needed: lower --capacity"):
        replay.Shared(x=((10**13,), np.float32))


def write_many(items, count):
    sent = 0
    while sent < count:
        many = min(items.room(0), 5, count - sent)
        if many:
            items.write(0, {"x": np.arange(sent, sent + many)[:, None]})
            sent += many


def test_a_process_writes_while_another_reads():
    items, memory = make(capacity=64, ring=16)
    context = multiprocessing.get_context("spawn")
    writer = context.Process(target=write_many, args=(items, 5000), daemon=True)
    writer.start()
    seen = 0
    while seen < 5000 and (writer.is_alive() or memory.items.shared.filled[0] > seen):
        new = memory.collect()
        seen += new
        if new:
            here = values(items, memory)
            np.testing.assert_array_equal(here, np.arange(seen - len(here), seen))
    writer.join(10)
    assert seen == 5000
    assert writer.exitcode == 0
