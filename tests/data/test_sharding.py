"""Orders, shares and positions; labels number the images, so a batch's labels say which images it holds."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from budgetnet.data import DeviceLoader, ImageArrays
from budgetnet.data.sharding import plan_batches
from budgetnet.errors import UsageError


def numbered(size: int) -> ImageArrays:
    images = torch.randint(256, (size, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    return ImageArrays(images, torch.arange(size), num_classes=size)


def loader(size: int = 103, batch_size: int = 24, **options) -> DeviceLoader:
    options = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "shuffle": True, "drop_last": True, **options}
    return DeviceLoader(numbered(size), batch_size, **options)


def flat(parts) -> list[int]:
    return list(chain.from_iterable(parts))


def held(batches) -> list[list[int]]:
    return [labels.tolist() for _, labels in batches]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_together_yield_the_batches_of_one(world_size, drop_last):
    whole = held(loader(drop_last=drop_last))
    shares = [held(loader(drop_last=drop_last, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert [flat(parts) for parts in zip(*shares, strict=True)] == whole
    sizes = [{len(part) for part in parts} for parts in zip(*shares, strict=True)]
    assert all(max(size) - min(size) <= (0 if drop_last else 1) and min(size) > 0 for size in sizes)


def test_augmented_images_are_the_same_for_every_world_size():
    options = {"padding": 2, "flip": True}
    whole = list(loader(**options))
    shares = [list(loader(rank=rank, world_size=2, **options)) for rank in range(2)]
    for (images, _), first, second in zip(whole, *shares, strict=True):
        assert torch.equal(images, torch.cat([first[0], second[0]]))


def test_training_drops_the_incomplete_batch_and_nothing_else():
    batches = held(loader(103, 24))
    assert [len(batch) for batch in batches] == [24] * 4
    assert len(set(flat(batches))) == 96


def test_evaluation_loses_and_repeats_nothing_and_keeps_the_order():
    batches = held(loader(103, 24, shuffle=False, drop_last=False))
    assert flat(batches) == list(range(103))
    assert sorted(len(batch) for batch in batches) == [20, 20, 21, 21, 21]


def test_a_set_smaller_than_a_batch_is_one_batch():
    assert [len(batch) for batch in held(loader(10, 24))] == [10]
    assert [len(batch) for batch in held(loader(10, 24, world_size=4))] == [2]


@pytest.mark.parametrize("options", [{"world_size": 5}, {"batch_size": 4, "size": 3, "world_size": 4}])
def test_processes_without_equal_parts_are_refused(options):
    with pytest.raises(UsageError) as error:
        loader(**options)
    assert "\n" not in str(error.value)


def test_an_evaluation_that_leaves_a_process_empty_is_refused():
    with pytest.raises(UsageError, match="3 images"):
        plan_batches(3, 8, world_size=4)


def test_the_order_depends_on_seed_and_epoch_alone():
    one = loader(seed=1)
    first = held(one)
    assert held(one) == first
    one.set_epoch(1)
    assert held(one) != first
    one.set_epoch(0)
    assert held(one) == first
    assert flat(held(loader(batch_size=12, seed=1)))[:96] == flat(first)
    assert held(loader(seed=2)) != first


def test_the_global_random_state_is_neither_read_nor_changed():
    before = torch.get_rng_state()
    first = held(loader(padding=1, flip=True))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1234)
    assert held(loader(padding=1, flip=True)) == first


def test_starting_at_a_batch_yields_the_rest_bit_for_bit_and_only_once():
    one = loader(padding=2, flip=True)
    one.set_epoch(3)
    whole = list(one)
    one.start_at(2)
    rest = list(one)
    assert len(rest) == len(whole) - 2
    for (images, labels), (images2, labels2) in zip(whole[2:], rest, strict=True):
        assert torch.equal(images, images2) and torch.equal(labels, labels2)
    assert held(one) == held(whole)


def test_a_start_beyond_the_epoch_is_refused_and_at_its_end_leaves_nothing():
    one = loader()
    one.start_at(4)
    assert held(one) == []
    with pytest.raises(UsageError, match="4 batches"):
        one.start_at(5)


def test_a_restored_state_continues_the_epoch_it_was_taken_in():
    one = loader(seed=5)
    one.set_epoch(2)
    whole = held(one)
    running = iter(one)
    next(running), next(running), next(running)
    state = one.state_dict()
    assert state == {"epoch": 2, "batch": 3}

    other = loader(seed=5)
    other.load_state_dict(state)
    other.set_epoch(2)
    assert held(other) == whole[3:]


def test_a_state_taken_at_the_end_of_an_epoch_skips_nothing_of_the_next():
    one = loader()
    for _ in zip(range(2), one, strict=False):  # as a trainer does that is limited to two batches an epoch
        pass
    other = loader()
    other.load_state_dict(one.state_dict())
    other.set_epoch(1)
    assert len(held(other)) == 4
