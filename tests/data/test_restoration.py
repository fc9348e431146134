"""Small and noisy images are made as the benchmarks of restoration have them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import photograph
from PIL import Image

from budgetnet.data import restoration
from budgetnet.data.pictures import files_of, read_picture
from budgetnet.errors import UsageError


def matlab_weights(before: int, after: int) -> np.ndarray:
    """(after, before): what every pixel of MATLAB's imresize along one side is made of, from its documentation."""
    scale = after / before
    stretch = max(1.0, 1 / scale)
    weights = np.zeros((after, before))
    for pixel in range(after):
        centre = (pixel + 0.5) / scale - 0.5
        for source in range(math.floor(centre - 2 * stretch), math.ceil(centre + 2 * stretch) + 1):
            x = abs(centre - source) / stretch
            value = 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0
            mirrored = source % (2 * before)
            weights[pixel, min(mirrored, 2 * before - 1 - mirrored)] += value
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("numerator", "denominator"), [(1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (4, 1)])
def test_bicubic_is_that_of_matlab_to_one_grey_level(numerator: int, denominator: int) -> None:
    image = photograph()
    height, width = (side * numerator // denominator for side in image.shape[1:])
    rows, columns = matlab_weights(image.shape[1], height), matlab_weights(image.shape[2], width)
    exact = np.clip(np.floor(rows @ image.numpy().astype(float) @ columns.T + 0.5), 0, 255)
    difference = np.abs(restoration.bicubic(image, (height, width)).numpy() - exact)
    assert difference.max() <= 1 and (difference == 0).mean() > 0.999


@pytest.mark.parametrize("scale", restoration.SCALES)
def test_bicubic_is_that_of_pillow_to_one_grey_level_where_neither_clips_nor_meets_the_border(scale: int) -> None:
    image = photograph() // 2 + 64
    low, high = restoration.smaller(image, scale)
    of_bytes = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(low.shape[:0:-1], Image.Resampling.BICUBIC)
    difference = (low.int() - torch.from_numpy(np.array(of_bytes)).permute(2, 0, 1).int()).abs()
    assert difference[:, 2:-2, 2:-2].max() <= 1
    assert torch.equal(high, image) and low.shape == (3, 96 // scale, 120 // scale)


def test_what_a_scale_leaves_over_is_cut_off_at_the_end() -> None:
    image = photograph(50, 47)
    low, high = restoration.smaller(image, 4)
    assert low.shape == (3, 12, 11) and torch.equal(high, image[:, :48, :44])


@pytest.mark.parametrize("scale", [0, 5, True, "2", 2.0])
def test_another_scale_is_refused(scale: object) -> None:
    with pytest.raises(UsageError, match=r"dataset\.source\.scale="):
        restoration.smaller(photograph(8, 8), scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("grey", [False, True])
def test_a_smaller_image_is_made_once_and_made_anew_for_another_file(tmp_path: Path, grey: bool) -> None:
    path, cache = tmp_path / "a.png", tmp_path / "cache"
    Image.fromarray(photograph().permute(1, 2, 0).numpy()).save(path)
    low, high = restoration.smaller_file(path, 3, cache, grey)
    assert torch.equal(high, read_picture(path, grey)) and torch.equal(low, restoration.smaller(high, 3)[0])
    (kept,) = cache.iterdir()
    marked = low.clone()
    marked[0, 0, 0] = 255 - marked[0, 0, 0]
    Image.fromarray(marked[0].numpy() if grey else marked.permute(1, 2, 0).numpy()).save(kept)
    assert torch.equal(restoration.smaller_file(path, 3, cache, grey)[0], marked)
    Image.fromarray(photograph().flip(2).permute(1, 2, 0).numpy()).save(path)
    assert torch.equal(restoration.smaller_file(path, 3, cache, grey)[0], restoration.smaller(high.flip(2), 3)[0])


def test_tiles_cover_an_image_and_the_last_ends_with_it() -> None:
    assert restoration.tile_starts(2040) == [0, 240, 480, 720, 960, 1200, 1440, 1560]
    assert restoration.tile_starts(480) == [0] and restoration.tile_starts(479) == []
    assert restoration.tile_starts(10, 4, 3) == [0, 3, 6]
    image = torch.arange(3 * 7 * 9).reshape(3, 7, 9)
    found = restoration.tiles(image, 4, 3)
    assert len(found) == 2 * 3 and torch.equal(found[-1], image[:, 3:, 5:])


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_patches_of_an_image_and_of_its_truth_show_the_same(scale: int) -> None:
    low = torch.rand(3, 11, 14)
    high = low.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    for seed in range(20):
        inputs, truth = restoration.patches(low, high, 6, torch.Generator().manual_seed(seed))
        assert truth.shape == (3, 6, 6)
        assert torch.equal(inputs.repeat_interleave(scale, 1).repeat_interleave(scale, 2), truth)


def test_a_square_is_put_down_in_eight_ways() -> None:
    square = torch.arange(4).reshape(1, 2, 2)
    assert len({tuple(restoration.turned(square, turn).flatten().tolist()) for turn in range(8)}) == 8
    assert torch.equal(restoration.turned(square, 0), square)


def test_patches_are_a_function_of_the_generator() -> None:
    image = photograph()
    one, same, other = (restoration.patches(image, image, 8, torch.Generator().manual_seed(s))[0] for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_noise_is_neither_rounded_nor_clipped_and_has_the_asked_deviation() -> None:
    grey = torch.zeros(1, 200, 200, dtype=torch.uint8)
    noise = restoration.noisy(grey, 70, torch.Generator().manual_seed(0))
    assert noise.std().item() == pytest.approx(70, rel=0.02) and noise.mean().item() == pytest.approx(0, abs=1.5)
    assert noise.min() < -100 and not torch.equal(noise, noise.round())


def test_test_noise_depends_on_the_seed_and_the_image_alone() -> None:
    grey = torch.full((1, 5, 4), 100, dtype=torch.uint8)
    first = restoration.fixed_noise(grey, 25, seed=0, number=3)
    torch.rand(7)
    assert torch.equal(first, restoration.fixed_noise(grey, 25, seed=0, number=3))
    assert not torch.equal(first, restoration.fixed_noise(grey, 25, seed=0, number=4))
    assert not torch.equal(first, restoration.fixed_noise(grey, 25, seed=1, number=3))


def test_pictures_are_read_in_order_in_colour_or_grey(tmp_path: Path) -> None:
    image = photograph(5, 6)
    for name in ("b.png", "a.BMP"):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [path.name for path in files_of(tmp_path)] == ["a.BMP", "b.png"]
    assert torch.equal(read_picture(tmp_path / "a.BMP"), image)
    grey = read_picture(tmp_path / "b.png", grey=True)
    luminance = torch.einsum("chw,c->hw", image.double(), torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))
    assert grey.shape == (1, 5, 6) and (grey[0] - luminance).abs().max() <= 1


def test_what_cannot_be_used_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no image"):
        files_of(tmp_path)
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(UsageError, match=r"a\.png cannot be read as an image"):
        read_picture(tmp_path / "a.png")
    sizes = {Path("x.png"): (100, 200), Path("y.png"): (96, 50)}
    restoration.check_patches(sizes, 48, scale=2)
    with pytest.raises(UsageError, match=r"y\.png is 50 pixels wide and 96 high.*to 48 at most"):
        restoration.check_patches(sizes, 96, scale=4)
    for patch in (50, 0, "48", True):
        with pytest.raises(UsageError, match=r"dataset\.source\.patch="):
            restoration.check_patches(sizes, patch, scale=4)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no 1/4 of its size"):
        restoration.smaller(photograph(3, 9), 4)
