"""Folders of pictures as a user has them: nested, in parts or not, of every format, with files of something else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from budgetnet.command.compose import composed
from budgetnet.command.made import make_data
from budgetnet.command.names import run_directory
from budgetnet.data.class_folders import read_class_folders, scan
from budgetnet.data.folder import decode
from budgetnet.data.options import DatasetOptions
from budgetnet.errors import UsageError
from budgetnet.options import names_of


def draw(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures of cats and five of dogs."""
    for name, count in (("cat", 10), ("dog", 5)):
        for number in range(count):
            draw(tmp_path / name / f"{number}.png")
    return tmp_path


def whole(width: int, height: int) -> tuple[float, float, float, float]:
    return 0, 0, width, height


# -- which files ------------------------------------------------------------------------------------------------------


def test_nested_pictures_of_every_format_are_of_their_topmost_folder(tmp_path: Path) -> None:
    names = ["a.jpg", "b.JPEG", "c.png", "d.webp", "e.bmp", "f.gif", "g.tif", "h.ppm"]
    for name in names:
        draw(tmp_path / "cat" / "more" / "and more" / name)
        draw(tmp_path / "dog" / name)
    data = scan(tmp_path)
    assert [data.path(number).name for number in range(16)] == 2 * names
    assert (data.labels.tolist(), data.class_names, data.left_out) == ([0] * 8 + [1] * 8, ("cat", "dog"), "")
    for number in range(16):
        pixels = decode(data.path(number), whole, 8)
        assert np.abs(pixels.astype(int) - [200, 100, 50]).max() < 8, data.path(number)


def test_what_is_left_out_is_counted(pictures: Path) -> None:
    (pictures / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")
    (pictures / ".ipynb_checkpoints").mkdir()
    (pictures / "labels.csv").write_text("")
    (pictures / "dog" / "film.MP4").write_text("")
    (pictures / "dog" / "film2.mp4").write_text("")
    (pictures / "fish").mkdir()
    data = scan(pictures)
    assert len(data) == 15 and data.class_names == ("cat", "dog")
    assert data.left_out == "2 hidden, 2 no image (.mp4), 1 folders without an image, 1 not in a folder of a class"


def test_a_link_to_a_folder_above_ends_no_scan(pictures: Path) -> None:
    (pictures / "cat" / "all").symlink_to(pictures / "cat")
    (pictures / "wolf").symlink_to(pictures / "dog")
    data = scan(pictures)
    assert Counter(data.labels.tolist()) == {0: 10, 1: 5, 2: 5}


# -- parts ------------------------------------------------------------------------------------------------------------


def test_a_fifth_of_every_class_is_tested_on_where_there_are_no_parts(pictures: Path) -> None:
    train, test = read_class_folders(pictures)
    assert Counter(train.labels.tolist()) == {0: 8, 1: 4} and Counter(test.labels.tolist()) == {0: 2, 1: 1}
    files = [set(part.files.tolist()) for part in (train, test)]
    assert not files[0] & files[1] and len(files[0] | files[1]) == 15
    assert read_class_folders(pictures)[1].files.tolist() == test.files.tolist()


@pytest.mark.parametrize(
    "parts, sizes",
    [
        (("train", "val"), [4, 2]),
        (("train", "test"), [4, 2]),
        (("train", "valid", "test"), [4, 2, 2]),
        (("Training", "Testing"), [4, 2]),
        (("Train", "Validation", "TEST"), [4, 2, 2]),
    ],
)
def test_folders_of_parts_are_the_parts(tmp_path: Path, parts: tuple[str, ...], sizes: list[int]) -> None:
    for part, size in zip(parts, sizes, strict=True):
        for number in range(size):
            draw(tmp_path / part / "ab"[number % 2] / f"{number}.png")
    assert [len(part) for part in read_class_folders(tmp_path)] == sizes


def test_a_class_that_is_called_train_is_one(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        for number in range(2):
            draw(tmp_path / name / f"{number}.png")
    assert read_class_folders(tmp_path, test=0.5)[0].class_names == ("bus", "train")


def test_folders_that_hold_no_dataset_are_named(pictures: Path, tmp_path: Path) -> None:
    for root, message in (
        (pictures / "nowhere", "dataset.root=.*nowhere is not a directory: expected a folder of images for each class"),
        (pictures / "cat", "cat has no class: .*10 not in a folder of a class"),
    ):
        with pytest.raises(UsageError, match=message):
            read_class_folders(root)
    with pytest.raises(UsageError, match="expected the part of the images to test on"):
        read_class_folders(pictures, test=1.5)
    draw(pictures / "fish" / "a.png")
    with pytest.raises(UsageError, match="fish has 1 image: expected enough to train and to test on"):
        read_class_folders(pictures)
    parts = tmp_path / "parts"
    for part, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "c")):
        draw(parts / part / name / "0.png")
    with pytest.raises(UsageError, match="train and val must have the same classes, but b is in one of them alone"):
        read_class_folders(parts)
    for part in ("train", "val"):
        draw(tmp_path / "wrapped" / part / "images" / "cat" / "0.png")
    with pytest.raises(UsageError, match="train has one class, images: expected a folder of images for each class"):
        read_class_folders(tmp_path / "wrapped")


# -- pixels -----------------------------------------------------------------------------------------------------------


def test_pictures_of_16_bits_and_of_palettes_keep_their_grey_levels(tmp_path: Path) -> None:
    grey = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.tif")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    for name in ("deep.png", "deep.tif", "palette.png", "grey.png"):
        assert np.array_equal(decode(tmp_path / name, whole, 16), np.repeat(grey[:, :, None], 3, 2)), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_was_held(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16], pixels[8:, :16] = (250, 0, 0), (0, 250, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png"):
        Image.fromarray(pixels).save(tmp_path / name, exif=exif, **({"quality": 100} if name == "a.jpg" else {}))
        upright = ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB")
        lower_half = lambda width, height: (0, height / 2, width, height)  # noqa: E731
        box = lower_half(*upright.size)
        expected = np.asarray(upright.crop(tuple(map(int, box))).resize((4, 4), Image.Resampling.BILINEAR))
        got = decode(tmp_path / name, lower_half, 4, exif=True)
        assert np.abs(got.astype(int) - expected).max() < 60, name
        assert decode(tmp_path / name, whole, 8).argmax(2)[0, 0] == 0


# -- options ----------------------------------------------------------------------------------------------------------


def options_of(*overrides: str) -> tuple[DatasetOptions, dict]:
    section = composed(overrides)["dataset"]
    return DatasetOptions(**{name: section[name] for name in section if name in names_of(DatasetOptions)}), section


def test_a_fraction_is_held_out_unless_there_is_a_validation_set(pictures: Path, tmp_path: Path) -> None:
    data = make_data(*options_of("dataset=folder", f"dataset.root={pictures}", "dataset.validation=0.25"))
    assert [len(part) for part in data.splits if part is not None] == [9, 3, 3]
    assert (data.name, data.input_shape) == (pictures.name, (3, 64, 64))
    parts = tmp_path / "parts"
    for number in range(12):
        draw(parts / ("train", "val", "test")[number % 3] / "ab"[number % 2] / f"{number}.png")
    data = make_data(*options_of("dataset=folder", f"dataset.root={parts}", "dataset.image_size=16"))
    assert [len(part) for part in data.splits if part is not None] == [4, 4, 4]
    assert data.input_shape == (3, 16, 16)


def test_sizes_are_refused_where_images_have_their_own() -> None:
    with pytest.raises(UsageError, match=r"dataset.image_size=16: the images of dataset=digits have no such option"):
        make_data(*options_of("dataset=digits", "+dataset.image_size=16"))


def test_two_folders_are_two_runs() -> None:
    names = []
    for root in ("a/cats", "a/dogs"):
        overrides = ["dataset=folder", f"dataset.root={root}", "budget.flops=50%"]
        names.append(run_directory(composed(overrides), overrides).name)
    assert names == ["budget.flops=50%,dataset=cats", "budget.flops=50%,dataset=dogs"]


def test_a_folder_without_a_root_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match=r"dataset.root is missing: expected the folder of the images"):
        options_of("dataset=folder")
