from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import pickle
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from budgetnet.data import cifar10, cifar100, digits, mnist, readers
from budgetnet.data.official import OfficialFiles
from budgetnet.errors import UsageError


def md5(contents: bytes) -> str:
    return hashlib.md5(contents).hexdigest()


def write(root: Path, files: OfficialFiles, contents: dict[str, bytes]) -> OfficialFiles:
    """Lay out these files; the same description with their checksums."""
    (root / files.folder).mkdir(parents=True)
    for name, blob in contents.items():
        (root / files.folder / name).write_bytes(blob)
    return replace(files, md5={name: md5(contents[name]) for name in files.md5})


@pytest.fixture
def small_cifar(tmp_path, monkeypatch) -> Path:
    """CIFAR-10's layout with 20 images a batch, and its checksums."""
    generator = np.random.default_rng(0)
    contents = {"batches.meta": pickle.dumps({b"label_names": [b"class%d" % number for number in range(10)]})}
    for name in readers.CIFAR10.md5:
        if name != "batches.meta":
            pixels = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
            contents[name] = pickle.dumps({b"data": pixels, b"labels": [number % 10 for number in range(20)]})
    monkeypatch.setattr(readers, "CIFAR10", write(tmp_path, readers.CIFAR10, contents))
    return tmp_path


def test_cifar10_is_read_in_the_order_of_its_batches(small_cifar):
    train, test = cifar10(small_cifar, download=False)
    assert (len(train), len(test), train.shape, train.num_classes) == (100, 20, (3, 32, 32), 10)
    third = pickle.loads((small_cifar / "cifar-10-batches-py" / "data_batch_3").read_bytes())
    assert train.images[40:60].numpy().tobytes() == third[b"data"].tobytes()
    assert train.labels[40:60].tolist() == third[b"labels"]
    assert train.class_names[9] == "class9"


def test_a_flipped_bit_is_refused_by_name_and_left_as_it_is(small_cifar):
    path = small_cifar / "cifar-10-batches-py" / "data_batch_4"
    right = path.read_bytes()
    wrong = bytes([right[0] ^ 1]) + right[1:]
    path.write_bytes(wrong)
    with pytest.raises(UsageError) as error:
        cifar10(small_cifar, download=True)
    for part in (str(path), md5(wrong), md5(right), "left as it is"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == wrong


def test_nothing_is_unpickled_before_its_checksum_is_right(small_cifar):
    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit('unpickled')",)

    (small_cifar / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UsageError, match=r"batches\.meta"):
        cifar10(small_cifar)


def test_missing_files_are_named_with_their_place(small_cifar):
    (small_cifar / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(UsageError, match=r"put test_batch into .*cifar-10-batches-py"):
        cifar10(small_cifar, download=False)


def test_a_missing_directory_is_named_and_not_made(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere is not a directory: put train, test, meta into") as error:
        cifar100(tmp_path / "nowhere", download=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """A function that serves a folder over http until the test ends; its address."""
    monkeypatch.setenv("NO_PROXY", "*")
    servers = []

    def start(folder: Path) -> str:
        handler = functools.partial(QuietHandler, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_missing_files_come_from_the_archive_and_others_are_kept(small_cifar, serve, monkeypatch, tmp_path):
    archive, target = tmp_path / "cifar-10-python.tar.gz", tmp_path / "target"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(small_cifar / "cifar-10-batches-py", "cifar-10-batches-py")
    served = replace(readers.CIFAR10, url=serve(tmp_path) + archive.name, archive_md5=md5(archive.read_bytes()))
    monkeypatch.setattr(readers, "CIFAR10", served)
    own = target / "cifar-10-batches-py" / "test_batch"
    own.parent.mkdir(parents=True)
    own.write_bytes((small_cifar / "cifar-10-batches-py" / "test_batch").read_bytes())
    made = own.stat().st_mtime_ns

    train, _ = cifar10(target)
    assert len(train) == 100
    assert own.stat().st_mtime_ns == made
    assert sorted(path.name for path in target.iterdir()) == ["cifar-10-batches-py"]


def test_a_download_with_a_wrong_checksum_leaves_nothing_behind(small_cifar, serve, monkeypatch, tmp_path):
    (tmp_path / "wrong.tar.gz").write_bytes(b"not the archive")
    monkeypatch.setattr(readers, "CIFAR10", replace(readers.CIFAR10, url=serve(tmp_path) + "wrong.tar.gz"))
    with pytest.raises(UsageError, match="could not be downloaded") as error:
        cifar10(tmp_path / "target")
    assert "\n" not in str(error.value)
    assert list((tmp_path / "target").iterdir()) == []


def test_without_a_network_the_files_to_provide_are_named_soon(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(readers, "MNIST", replace(readers.MNIST, url="http://127.0.0.1:9/"))
    begin = time.monotonic()
    with pytest.raises(UsageError, match=r"train-images-idx3-ubyte\.gz.*MNIST/raw") as error:
        mnist(tmp_path)
    assert "\n" not in str(error.value)
    assert time.monotonic() - begin < 10


@pytest.fixture
def small_mnist() -> dict[str, bytes]:
    """MNIST's four files, unpacked, with 12 and 5 images."""
    contents = {}
    for part, count in (("train", 12), ("t10k", 5)):
        header = bytes([0, 0, 8, 3]) + np.array([count, 28, 28], dtype=">i4").tobytes()
        pixels = np.arange(count * 784, dtype=np.uint32).astype(np.uint8).tobytes()
        contents[f"{part}-images-idx3-ubyte"] = header + pixels
        labels = bytes(number % 10 for number in range(count))
        contents[f"{part}-labels-idx1-ubyte"] = bytes([0, 0, 8, 1]) + np.array([count], dtype=">i4").tobytes() + labels
    return contents


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_packed_and_unpacked(small_mnist, packed, tmp_path, monkeypatch):
    zipped = {f"{name}.gz": gzip.compress(blob) for name, blob in small_mnist.items()}
    files = replace(
        readers.MNIST,
        md5={name: md5(blob) for name, blob in zipped.items()},
        unpacked_md5={f"{name}.gz": md5(blob) for name, blob in small_mnist.items()},
    )
    monkeypatch.setattr(readers, "MNIST", files)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for name, blob in (zipped if packed else small_mnist).items():
        (tmp_path / "MNIST" / "raw" / name).write_bytes(blob)
    train, test = mnist(tmp_path, download=False)
    assert (len(train), len(test), train.shape) == (12, 5, (1, 28, 28))
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert train.images.flatten()[:300].tolist() == [number % 256 for number in range(300)]


def test_digits_are_a_fixed_stratified_split_of_1797_images():
    train, test = digits()
    assert (len(train), len(test), train.shape) == (1437, 360, (1, 28, 28))
    counts = train.labels.bincount() + test.labels.bincount()
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (test.labels.bincount() - counts * 360 / 1797).abs().max() <= 1
    assert train.images.max() == 255 and train.images.min() == 0
    again, _ = digits()
    assert (again.images == train.images).all()


# -- the published files ------------------------------------------------------------------------------------------


def need(root: Path, folder: str) -> None:
    if not (root / folder).is_dir():
        pytest.skip(f"{root} does not hold {folder}")


def test_official_cifar10(data_root):
    need(data_root, "cifar-10-batches-py")
    train, test = cifar10(data_root, download=False)
    assert (train.class_names[train.labels[0]], test.class_names[test.labels[0]]) == ("frog", "cat")
    assert train.labels.bincount().tolist() == [5000] * 10 and test.labels.bincount().tolist() == [1000] * 10
    mean, std = train.statistics()
    assert [round(value, 4) for value in mean] == [0.4914, 0.4822, 0.4465]
    assert [round(value, 4) for value in std] == [0.2470, 0.2435, 0.2616]


def test_official_cifar100(data_root):
    need(data_root, "cifar-100-python")
    train, test = cifar100(data_root, download=False)
    assert (train.class_names[train.labels[0]], test.class_names[test.labels[0]]) == ("cattle", "mountain")
    assert train.labels.bincount().tolist() == [500] * 100 and test.labels.bincount().tolist() == [100] * 100


def test_official_mnist(data_root):
    need(data_root, "MNIST/raw")
    train, test = mnist(data_root, download=False)
    assert (len(train), len(test), int(train.labels[0]), int(test.labels[0])) == (60_000, 10_000, 5, 7)
    mean, std = train.statistics()
    assert (round(mean[0], 4), round(std[0], 4)) == (0.1307, 0.3081)
