from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from budgetnet.data import FolderLoader, ImageFolder, read_class_folders
from budgetnet.data.class_folders import scan
from budgetnet.data.datamodule import DataModule
from budgetnet.data.folder import IMAGENET_MEAN, IMAGENET_STD, centre_crop, decode, random_crop
from budgetnet.data.options import DatasetOptions
from budgetnet.errors import UsageError


def picture(width: int, height: int, mode: str = "RGB", shift: float = 0.0) -> Image.Image:
    """A smooth pattern, as photographs are, so that JPEG and resizing change little."""
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 3, height))
    channels = [127 + 120 * np.sin(a * x + b * y + shift) for a, b in ((1, 2), (2, 1), (2, -1))]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8)).convert(mode)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twelve training images of odd sizes and modes in three classes, and three test images."""
    shapes = [(61, 47), (90, 40), (33, 33), (500, 375)]
    modes = ["RGB", "L", "CMYK", "RGB"]
    for label, name in enumerate(("n01", "n02", "n03")):
        for part, count in (("train", 4), ("val", 1)):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                image = picture(*shapes[number], mode=modes[number], shift=label + number / 7)
                image.save(tmp_path / part / name / f"{name}_{number}.JPEG", quality=95)
    picture(50, 40, "P").save(tmp_path / "val" / "n03" / "palette.png")
    (tmp_path / "train" / "n01" / "notes.txt").write_text("not an image")
    return tmp_path


def loader(data: ImageFolder, batch_size: int = 5, **options) -> FolderLoader:
    return FolderLoader(data, batch_size, **{"mean": IMAGENET_MEAN, "std": IMAGENET_STD, **options})


def test_a_folder_is_labelled_by_its_sorted_classes(folder):
    train, test = read_class_folders(folder, image_size=32)
    assert train.class_names == ("n01", "n02", "n03")
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert test.labels.tolist() == [0, 1, 2, 2]
    assert (train.shape, train.path(4).name, train.num_classes) == ((3, 32, 32), "n02_0.JPEG", 3)


def test_images_of_every_size_and_mode_become_normalised_rgb_batches(folder):
    _, test = read_class_folders(folder, image_size=32)
    for data in (test, scan(folder / "train", 32)):
        batches = list(loader(data))
        assert sum(len(labels) for _, labels in batches) == len(data)
        for images, labels in batches:
            assert images.shape == (len(labels), 3, 32, 32) and images.dtype == torch.float32
            assert labels.dtype == torch.int64
    first = decode(test.path(0), centre_crop, 32)
    expected = (first / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert np.allclose(next(iter(loader(test)))[0][0].permute(1, 2, 0), expected, atol=1e-5)


def test_half_of_the_training_crops_are_mirrored_unless_that_is_turned_off(folder):
    data, mirrored = scan(folder / "train", 32), 0
    for epoch in range(3):
        loaders = [loader(data, augment=True, flip=flip) for flip in (True, False)]
        for each in loaders:
            each.epoch = epoch
        for (images, _), (plain, _) in zip(*loaders, strict=True):
            same = (images == plain).flatten(1).all(1)
            assert torch.equal(torch.where(same[:, None, None, None], images, images.flip(3)), plain)
            mirrored += int((~same).sum())
    assert 9 <= mirrored <= 27  # of 36
    for options, mirrors in (({}, True), ({"flip": None}, True), ({"flip": False}, False)):
        module = DataModule(DatasetOptions(root=folder, batch_size=4, augment=options), read_class_folders)
        module.setup()
        assert module.train_dataloader().flip is mirrors
    with pytest.raises(UsageError, match=r"augment.padding=2: pictures in folders are cropped"):
        DataModule(DatasetOptions(root=folder, batch_size=4, augment={"padding": 2}), read_class_folders).setup()


def test_evaluation_is_resize_then_centre_crop(tmp_path):
    picture(640, 480).save(tmp_path / "a.png")
    resized = picture(640, 480).resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((58, 16, 282, 240)), dtype=float)
    assert np.abs(decode(tmp_path / "a.png", centre_crop, 224) - expected).mean() < 1


@pytest.mark.parametrize("crop", [centre_crop, lambda width, height: random_crop(width, height, random.Random(3))])
def test_decoding_at_reduced_size_is_close_to_full_decoding(tmp_path, crop):
    image = picture(1600, 1200)
    image.save(tmp_path / "a.jpg", quality=95)
    image.save(tmp_path / "a.png")
    fast, full = (decode(tmp_path / name, crop, 96).astype(float) for name in ("a.jpg", "a.png"))
    assert np.abs(fast - full).mean() < 2


def test_a_jpeg_is_decoded_at_the_smallest_size_that_has_the_pixels(tmp_path, monkeypatch):
    picture(1600, 1200).save(tmp_path / "a.jpg")
    shapes = []
    decode_jpeg = simplejpeg.decode_jpeg

    def noted(data, **options):
        pixels = decode_jpeg(data, **options)
        shapes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", noted)
    decode(tmp_path / "a.jpg", centre_crop, 224)  # 1050 pixels become 224: a quarter still has 262
    decode(tmp_path / "a.jpg", lambda width, height: (100, 100, 400, 400), 224)  # 300 become 224: no reduction
    assert shapes == [(300, 400, 3), (1200, 1600, 3)]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_has_the_pixels_that_pillow_reads(tmp_path, mode):
    picture(320, 240).convert(mode).save(tmp_path / "a.jpg")
    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))
    assert np.array_equal(decode(tmp_path / "a.jpg", lambda *_: (10, 20, 210, 220), 200), expected[20:220, 10:210])


def test_random_crops_lie_inside_and_keep_the_stated_area_and_ratio():
    draw = random.Random(0)
    for _ in range(300):
        left, top, right, bottom = random_crop(500, 375, draw)
        assert 0 <= left < right <= 500 and 0 <= top < bottom <= 375
        assert 0.075 < (right - left) * (bottom - top) / (500 * 375) <= 1
        assert 0.73 < (right - left) / (bottom - top) < 1.36
    assert random_crop(1000, 10, draw) == (495, 0, 505, 10)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_images_are_a_function_of_seed_epoch_and_image(folder, workers):
    train, _ = read_class_folders(folder, image_size=24)

    def by_order(epoch: int, **options) -> list[torch.Tensor]:
        one = loader(train, augment=True, shuffle=True, **options)
        one.set_epoch(epoch)
        return list(torch.cat([images for images, _ in one]))

    reference = by_order(0, batch_size=12)
    repeated = by_order(0, batch_size=4, workers=workers)
    assert all(torch.equal(one, two) for one, two in zip(reference, repeated, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(reference, by_order(1), strict=True))


def test_a_folder_is_shared_and_resumed_like_a_set_in_memory(folder):
    train, _ = read_class_folders(folder, image_size=16)
    options = {"augment": True, "shuffle": True, "drop_last": True}
    whole = list(loader(train, 4, **options))
    shares = [loader(train, 4, rank=rank, world_size=2, **options) for rank in range(2)]
    for (images, labels), first, second in zip(whole, *shares, strict=True):
        assert torch.equal(images, torch.cat([first[0], second[0]]))
        assert torch.equal(labels, torch.cat([first[1], second[1]]))
    rest = loader(train, 4, **options)
    rest.start_at(2)
    ((images, labels),) = rest
    assert torch.equal(images, whole[2][0]) and torch.equal(labels, whole[2][1])


def test_the_global_random_state_stays_as_it_is(folder):
    before = torch.get_rng_state()
    list(loader(scan(folder / "train", 16), augment=True, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_subset_keeps_files_and_labels_together(folder):
    train, _ = read_class_folders(folder, image_size=16)
    part = train.subset(torch.tensor([9, 2]))
    assert part.labels.tolist() == [2, 0]
    assert [part.path(index).name for index in range(2)] == ["n03_1.JPEG", "n01_2.JPEG"]
    assert torch.equal(next(iter(loader(part)))[0][0], next(iter(loader(train, 12)))[0][9])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(folder, workers):
    train, _ = read_class_folders(folder, image_size=16)
    path = train.path(7)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UsageError) as error:
        list(loader(train, workers=workers))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_real_photographs_are_read(data_root):
    if not (data_root / "imagenet-sample").is_dir():
        pytest.skip(f"{data_root} does not hold imagenet-sample")
    data = scan(data_root / "imagenet-sample", 64)
    assert len(data) == data.num_classes
    images, _ = next(iter(loader(data, 50)))
    assert abs(images.mean()) < 0.5 and 0.7 < images.std() < 1.3
