"""Folders of pictures become training and test sets of what is to be restored and the truth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import photograph, save, save_folder

from budgetnet.data import restoration
from budgetnet.data.options import DatasetOptions
from budgetnet.data.picture_loaders import PatchLoader, PictureLoader, Scale
from budgetnet.data.picture_module import PictureModule
from budgetnet.data.picture_sets import PictureSet, denoising, super_resolution
from budgetnet.errors import UsageError

IN_0_TO_1 = Scale((0.0,) * 3, (1.0,) * 3, "cpu", channels_last=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_folder(tmp_path / "train", 3)
    save_folder(tmp_path / "Set5" / "HR", 2, name="china")
    save_folder(tmp_path / "Set14", 1, name="china")
    return tmp_path


def test_the_input_is_the_truth_at_a_fraction_of_its_size_and_is_kept_beside_it(folder: Path) -> None:
    train, test = super_resolution(folder, scale=4, patch=32, test="Set5")
    assert (len(train), len(test)) == (3, 2) and train.shape == (3, 8, 8)
    for low, truth in zip(train.inputs, train.truths, strict=True):
        assert truth.shape == (3, 48, 56) and torch.equal(low, restoration.smaller(truth, 4)[0])
    assert len(list((folder / ".bicubic").iterdir())) == 5
    assert torch.equal(super_resolution(folder, scale=4, patch=32, test="Set5")[0].inputs[2], train.inputs[2])


def test_of_several_test_sets_the_first_selects_nothing_either_and_the_others_are_by_name(folder: Path) -> None:
    _, test = super_resolution(folder, patch=32, test=["Set5", "Set14"])
    assert len(test) == 2 and {name: len(other) for name, other in test.others.items()} == {"Set14": 1}


@pytest.mark.parametrize(
    ("folders", "training", "testing"),
    [
        ({"": 12}, "abcdefghij", "kl"),
        ({"train": 3, "test": 2}, "abc", "ab"),
        ({"DIV2K_train_HR": 2, "DIV2K_valid_HR": 1}, "ab", "a"),
        ({"": 3, "test": 1}, "abc", "a"),
    ],
)
def test_any_folder_of_pictures_will_do(folders: dict[str, int], training: str, testing: str, tmp_path: Path) -> None:
    for name, count in folders.items():
        for number in range(count):
            save(torch.full((3, 20, 20), 10 * number, dtype=torch.uint8), tmp_path / name / f"{chr(97 + number)}.png")
    sets = denoising(tmp_path, patch=16)
    found = ["".join(chr(97 + int(truth[0, 0, 0]) // 10) for truth in each.truths) for each in sets]
    assert found == [training, testing]


def test_large_pictures_are_covered_by_tiles_and_inputs_by_the_same(tmp_path: Path) -> None:
    truth = torch.arange(3 * 500 * 724).remainder(251).to(torch.uint8).reshape(3, 500, 724)
    low = truth[:, ::2, ::2]
    tiles = PictureSet((truth, truth[:, :100, :100]), (low, low[:, :50, :50]), 2, 32).tiles()
    assert [tuple(high.shape[1:]) for _, high in tiles] == [(480, 480)] * 6 + [(100, 100)]
    assert all(torch.equal(small, large[:, ::2, ::2]) for small, large in tiles)


def test_patches_are_functions_of_seed_epoch_and_number_however_many_processes(folder: Path) -> None:
    train, _ = super_resolution(folder, patch=32, patches=4, test="Set5")

    def epoch(seed: int = 0, epoch: int = 0, rank: int = 0, world_size: int = 1) -> list[tuple[torch.Tensor, ...]]:
        loader = PatchLoader(train, 4, IN_0_TO_1, seed=seed, rank=rank, world_size=world_size)
        loader.set_epoch(epoch)
        return list(loader)

    one = epoch()
    assert [tuple(truth.shape) for _, truth in one] == [(4, 3, 32, 32)] * 3
    assert all(images.shape == (4, 3, 16, 16) and images.max() <= 1 for images, _ in one)
    halves = zip(epoch(rank=0, world_size=2), epoch(rank=1, world_size=2), strict=True)
    assert all(
        torch.equal(torch.cat([a, b]), whole)
        for batch, pair in zip(one, halves, strict=True)
        for whole, a, b in zip(batch, *pair, strict=True)
    )
    assert not torch.equal(one[0][1], epoch(seed=1)[0][1]) and not torch.equal(one[0][1], epoch(epoch=1)[0][1])


def test_whole_pictures_are_divided_among_processes_and_their_noise_is_that_of_the_seed(folder: Path) -> None:
    _, test = denoising(folder, sigma=30, patch=16, test="Set5", noise_seed=7)
    grey = Scale((0.0,), (1.0,), "cpu", channels_last=True)
    pictures = list(PictureLoader(test, grey))
    for number, (inputs, truth) in enumerate(pictures):
        expected = restoration.fixed_noise(truth[0], 30, 7, number) / 255
        torch.testing.assert_close(inputs[0], expected)
        assert truth.shape == (1, 1, 48, 56)
    ranks = [list(PictureLoader(test, grey, rank, 2)) for rank in (0, 1)]
    assert [len(each) for each in ranks] == [1, 1] and torch.equal(ranks[1][0][0], pictures[1][0])


def test_middles_of_input_and_truth_show_the_same() -> None:
    lows = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((13, 16), (20, 11))]
    truths = [low.repeat_interleave(3, 1).repeat_interleave(3, 2) for low in lows]
    inputs, middles = PictureLoader(PictureSet(tuple(truths), tuple(lows), 3, 24), IN_0_TO_1).middles(5, 30)
    assert middles.shape == (2, 3, 30, 30)
    assert torch.equal((255 * inputs).round().to(torch.uint8).repeat_interleave(3, 2).repeat_interleave(3, 3), middles)


def test_pictures_are_held_out_and_patches_counted(folder: Path) -> None:
    options = DatasetOptions(root=folder, validation=1, batch_size=4)
    data = PictureModule(options, lambda root, download: super_resolution(root, patch=32, patches=6, test="Set5"))
    assert data.splits.validation is not None and len(data.splits.validation) == 1
    assert data.train_size == 2 * 6 and data.steps_per_epoch() == 3 and data.images_per_epoch() == 12
    assert data.own_task == {"_target_": "budgetnet.tasks.SuperResolution", "scale": 2}
    assert (data.mean, data.std) == ((0, 0, 0), (1, 1, 1)) and data.input_shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scale": 5}, r"dataset\.source\.scale=5: expected 2, 3, 4"),
        ({"scale": 3, "patch": 32}, r"dataset\.source\.patch=32: expected a number of pixels that the scale, 3, divi"),
        ({"patch": 64}, r"a\.png is 56 pixels wide and 48 high, less than a patch: .* to 48 at most"),
        ({"patches": 0}, r"dataset\.source\.patches=0: expected a whole number, 1 or more"),
        ({"test": "Set6"}, r"dataset\.source\.test=Set6: there is no folder"),
        ({"test": "small"}, r"c\.png is 20 pixels wide and 20 high: expected 27 at least for a test picture"),
        ({"test": "empty"}, r"empty has no image: expected files ending in"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(options: dict[str, object], text: str, folder: Path) -> None:
    save(photograph(20, 20), folder / "small" / "c.png")
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match=text) as raised:
        super_resolution(folder, **{"patch": 32, "test": "Set5", **options})  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_other_folders_that_cannot_be_used_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder: expected a folder of pictures"):
        denoising(tmp_path / "none")
    with pytest.raises(UsageError, match="has no image"):
        denoising(tmp_path)
    save(photograph(), tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"has one picture and .* no folder test: add pictures, or name a folder"):
        denoising(tmp_path)
    for sigma in (0, 300, True, "25"):
        with pytest.raises(UsageError, match=r"dataset\.source\.sigma="):
            denoising(tmp_path, sigma=sigma)  # type: ignore[arg-type]


def test_pictures_of_a_folder_that_cannot_be_written_to_are_made_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "mkdir", refused)
    train, _ = super_resolution(folder, patch=32, test="Set5")
    assert torch.equal(train.inputs[0], restoration.smaller(train.truths[0], 2)[0])
    assert not (folder / ".bicubic").exists()
