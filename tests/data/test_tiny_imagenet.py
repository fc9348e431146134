"""Tiny-ImageNet is read from the folders in which it is published."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from pictures import whole_picture
from PIL import Image

from budgetnet.data.tiny_imagenet import tiny_imagenet
from budgetnet.errors import UsageError

CLASSES = ("n02124075", "n01443537", "n04067472")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes of two real pictures each, and four to test on."""
    photograph = whole_picture("china")
    folder = tmp_path / "tiny-imagenet-200"

    def save(path: Path, left: int, mode: str = "RGB") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.crop((left, 100, left + 64, 164)).convert(mode).save(path, quality=95)

    for place, name in enumerate(CLASSES):
        for number in (0, 10, 2):
            mode = "L" if number == 2 else "RGB"
            save(folder / "train" / name / "images" / f"{name}_{number}.JPEG", 100 * place + 5 * number, mode)
        (folder / "train" / name / f"{name}_boxes.txt").write_text("")
    for number in range(4):
        save(folder / "val" / "images" / f"val_{number}.JPEG", 300 + 20 * number)
    lines = [f"val_{n}.JPEG\t{CLASSES[c]}\t0\t32\t44\t62" for n, c in ((0, 2), (3, 0), (1, 1), (2, 0))]
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "wnids.txt").write_text("\n".join(CLASSES) + "\n")
    words = [
        "n01443537\tgoldfish, Carassius auratus",
        "n02124075\tEgyptian cat",
        "n04067472\treel",
        "n00000001\tentity",
    ]
    (folder / "words.txt").write_text("\n".join(words) + "\n")
    return tmp_path


def test_classes_are_in_alphabetical_order_and_test_labels_come_from_the_annotations(root: Path) -> None:
    train, test = tiny_imagenet(root)
    assert train.class_names == test.class_names == ("goldfish", "Egyptian cat", "reel")
    assert (train.shape, train.num_classes, test.num_classes) == ((3, 64, 64), 3, 3)
    assert train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert test.labels.tolist() == [2, 1, 0, 1]


def test_images_are_in_the_order_of_their_numbers_and_grey_ones_become_colour(root: Path) -> None:
    train, test = tiny_imagenet(root / "tiny-imagenet-200")  # the folder itself will do
    files = root / "tiny-imagenet-200"
    for place, number in ((3, 0), (5, 10)):
        path = files / "train" / CLASSES[0] / "images" / f"{CLASSES[0]}_{number}.JPEG"
        pixels = torch.tensor(list(Image.open(path).getdata())).view(64, 64, 3).permute(2, 0, 1)
        assert (train.images[place].int() - pixels).abs().max() <= 2  # decoders of JPEG differ in their last bit
    grey = train.images[4]
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2]) and grey.float().std() > 1
    second = torch.tensor(list(Image.open(files / "val" / "images" / "val_3.JPEG").getdata())).view(64, 64, 3)
    assert (test.images[1].int() - second.permute(2, 0, 1)).abs().max() <= 2


def test_without_words_classes_keep_their_own_names(root: Path) -> None:
    (root / "tiny-imagenet-200" / "words.txt").unlink()
    assert tiny_imagenet(root)[0].class_names == tuple(sorted(CLASSES))


def test_two_classes_of_one_word_keep_their_own_names(root: Path) -> None:
    (root / "tiny-imagenet-200" / "words.txt").write_text("n01443537\tcrane\nn02124075\tcrane\nn04067472\treel\n")
    assert tiny_imagenet(root)[0].class_names == ("n01443537", "n02124075", "reel")


def test_what_is_missing_or_does_not_fit_is_told_in_one_line(root: Path) -> None:
    folder = root / "tiny-imagenet-200"

    def refused(text: str) -> None:
        with pytest.raises(UsageError, match=text) as caught:
            tiny_imagenet(root)
        assert "\n" not in str(caught.value)

    annotations = folder / "val" / "val_annotations.txt"
    right = annotations.read_text()
    annotations.write_text(right + "val_0.JPEG\tn99999999\t0\t0\t1\t1\n")
    refused("val_annotations.txt has the line .*n99999999")
    annotations.write_text(right + "val_9.JPEG\tn04067472\t0\t0\t1\t1\n")
    refused("val_9.JPEG cannot be read as an image")
    annotations.write_text("")
    refused("val_annotations.txt is empty")
    annotations.write_text(right)
    path = folder / "train" / CLASSES[1] / "images" / f"{CLASSES[1]}_0.JPEG"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(f"{CLASSES[1]}_0.JPEG cannot be read as an image")
    Image.new("RGB", (64, 60)).save(path)
    refused("is 64 pixels wide and 60 high: expected 64 and 64")
    shutil.rmtree(folder / "train" / CLASSES[1])
    refused(f"{CLASSES[1]}/images has no image")
    (folder / "wnids.txt").unlink()
    refused("wnids.txt cannot be read")
