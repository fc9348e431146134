"""Files truncated or bit-flipped at random places: refused by name in one line, and left as they are."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from budgetnet.data import FolderLoader, readers
from budgetnet.data.class_folders import scan
from budgetnet.data.folder import IMAGENET_MEAN, IMAGENET_STD, centre_crop, decode
from budgetnet.data.official import OfficialFiles
from budgetnet.errors import UsageError


def damaged(contents: bytes, draw: random.Random) -> bytes:
    """The contents cut off at a random place, or with one to eight random bits flipped."""
    if draw.random() < 0.5:
        return contents[: draw.randrange(len(contents))]
    changed = bytearray(contents)
    for place in draw.sample(range(8 * len(contents)), draw.choice([1, 2, 8])):
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def assert_refused_by_checksum(files: OfficialFiles, root: Path, name: str) -> None:
    """Found, so not downloaded; named with its checksum in one line; and left as it is."""
    path = root / files.folder / name
    before = path.read_bytes()
    files.locate(root, download=True)
    with pytest.raises(UsageError) as error:
        files.read(root, name if name in files.md5 else f"{name}.gz")
    text = str(error.value)
    assert text.startswith(f"{path}: md5 {hashlib.md5(before).hexdigest()}, expected ")
    assert "\n" not in text and "left as it is" in text
    assert path.read_bytes() == before


def test_200_damaged_files_are_refused_by_their_checksum(tmp_path: Path) -> None:
    draw = random.Random(0)
    batch, images = draw.randbytes(5000), draw.randbytes(3000)
    packed = {"batch": batch, "meta": batch[:150], "images.gz": gzip.compress(images)}
    files = OfficialFiles(
        "folder",
        {name: hashlib.md5(contents).hexdigest() for name, contents in packed.items()},
        url="http://127.0.0.1:9/",
        unpacked_md5={"images.gz": hashlib.md5(images).hexdigest()},
    )
    for case in range(200):
        present = packed if case % 2 else {"batch": batch, "meta": batch[:150], "images": images}
        folder = tmp_path / str(case) / files.folder
        folder.mkdir(parents=True)
        chosen = draw.choice(sorted(present))
        for name, contents in present.items():
            (folder / name).write_bytes(damaged(contents, draw) if name == chosen else contents)
        assert_refused_by_checksum(files, folder.parent, chosen)


def test_200_damaged_copies_of_the_published_files_are_refused_by_their_checksum(
    data_root: Path, tmp_path: Path
) -> None:
    draw = random.Random(0)
    kinds = [files for files in (readers.CIFAR10, readers.CIFAR100, readers.MNIST) if not files.missing(data_root)]
    if not kinds:
        pytest.skip(f"{data_root} holds none of the published datasets")
    originals = []
    for files in kinds:
        (tmp_path / files.folder).mkdir(parents=True)
        for path in (data_root / files.folder).iterdir():
            (tmp_path / files.folder / path.name).symlink_to(path)
            originals.append((files, path))
    small = [original for original in originals if original[1].stat().st_size < 2_000_000]
    for case in range(200):
        files, path = draw.choice(originals if case % 40 == 0 else small)  # the large ones take longer
        copy = tmp_path / files.folder / path.name
        copy.unlink()
        copy.write_bytes(damaged(path.read_bytes(), draw))
        assert_refused_by_checksum(files, tmp_path, path.name)
        copy.unlink()
        copy.symlink_to(path)


# -- pictures -----------------------------------------------------------------------------------------------------


def picture(draw: random.Random, suffix: str) -> bytes:
    """A small photograph-like file of the format that the suffix names."""
    pixels = np.random.default_rng(draw.randrange(2**32)).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(
        stream, Image.registered_extensions()[suffix]
    )
    return stream.getvalue()


def test_300_damaged_pictures_are_named_in_one_line_or_decode_all_the_same(tmp_path: Path) -> None:
    draw, outcomes = random.Random(0), Counter[str]()
    for case in range(300):
        path = tmp_path / f"{case}.jpg"
        path.write_bytes(damaged(picture(draw, draw.choice([".jpg", ".jpg", ".png", ".webp", ".gif", ".bmp"])), draw))
        try:
            assert decode(path, centre_crop, 16).shape == (16, 16, 3)
            outcomes["decoded"] += 1
        except UsageError as error:
            assert str(error).startswith(f"{path} cannot be read as an image (") and "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes["decoded"], outcomes["refused"]) > 50


def png_of(width: int, height: int) -> bytes:
    """A file of a few hundred bytes that says it is a picture of this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "contents",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not an image\n", id="text"),
        pytest.param(png_of(0, 10), id="no-width"),
        pytest.param(png_of(10_000, 10_000), id="bomb"),
        pytest.param(png_of(60_000, 60_000), id="larger-bomb"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", id="a-program"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_files_that_are_no_pictures_are_named_in_one_line(contents: bytes, workers: int, tmp_path: Path) -> None:
    path = tmp_path / "class" / "wrong.jpg"
    path.parent.mkdir()
    path.write_bytes(contents)
    loader = FolderLoader(scan(tmp_path, 16), 1, mean=IMAGENET_MEAN, std=IMAGENET_STD, workers=workers)
    with pytest.raises(UsageError) as error:
        list(loader)
    assert str(error.value).startswith(f"{path} cannot be read as an image (") and "\n" not in str(error.value)
