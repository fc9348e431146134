from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from budgetnet.command.build import make_data
from budgetnet.data.datamodule import DataModule
from budgetnet.data.options import DatasetOptions
from budgetnet.errors import UsageError
from budgetnet.options import names_of

CONF = Path(__file__).parents[2] / "conf"


def arrays(size: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(256, (size, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    return images, torch.arange(size) % classes


def module(**options) -> DataModule:
    return DataModule.from_arrays(arrays(200), arrays(40), **{"batch_size": 16, "validation": 40, **options})


class Recorder(pl.LightningModule):
    """Trains a linear layer and records the images it saw, by their sums."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(192, 4)
        nn.init.zeros_(self.net.weight)
        nn.init.zeros_(self.net.bias)
        self.seen: list[list[float]] = []
        self.evaluated = 0

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen.append(images.double().sum((1, 2, 3)).tolist())
        return nn.functional.cross_entropy(self.net(images.flatten(1)), labels)

    def validation_step(self, batch, batch_idx):
        self.evaluated += len(batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: DataModule, checkpoint: Path | None = None, **options) -> Recorder:
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **options},
    )
    trainer.fit(recorder, datamodule=data, ckpt_path=checkpoint)
    return recorder


def test_an_own_dataset_is_described_by_its_arrays():
    data = module(batch_size=24)
    assert (data.num_classes, data.in_channels, data.input_shape, data.train_size) == (4, 3, (3, 8, 8), 160)
    assert (data.steps_per_epoch(), data.steps_per_epoch(2), data.images_per_epoch(2)) == (6, 6, 144)
    assert len(data.train_dataloader()) == 6
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 40
    assert sum(len(labels) for _, labels in data.test_dataloader()) == 40


def test_statistics_are_measured_on_the_training_split_unless_given():
    data = module()
    assert (data.mean, data.std) == data.splits.train.statistics()
    assert module(mean=(0.1, 0.2, 0.3), std=(1, 1, 1)).mean == (0.1, 0.2, 0.3)


def test_runs_of_different_seeds_share_the_validation_images_but_not_the_order():
    one, two, other = module(seed=1), module(seed=2), module(seed=1, split_seed=1)
    assert torch.equal(one.splits.validation.images, two.splits.validation.images)
    assert not torch.equal(one.splits.validation.images, other.splits.validation.images)
    first, second = (next(iter(data.train_dataloader()))[0] for data in (one, two))
    assert not torch.equal(first, second)


def test_training_and_validation_images_are_disjoint_and_complete():
    splits = module().splits
    parts = [{image.numpy().tobytes() for image in part.images} for part in (splits.train, splits.validation)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {image.numpy().tobytes() for image in arrays(200)[0]}
    assert splits.validation.labels.bincount().tolist() == [10] * 4


def test_limits_are_stratified_and_leave_the_validation_images_alone():
    data = module(limit_train=21, limit_test=1000)
    assert data.splits.train.labels.bincount().tolist() == [6, 5, 5, 5]
    assert torch.equal(data.splits.validation.images, module().splits.validation.images)
    assert len(data.splits.test) == 40


def test_only_training_batches_are_augmented():
    plain, augmented = module(), module(augment={"padding": 2, "flip": True})
    assert not torch.equal(*(next(iter(data.train_dataloader()))[0] for data in (plain, augmented)))
    assert torch.equal(*(next(iter(data.val_dataloader()))[0] for data in (plain, augmented)))


def test_a_trainer_draws_every_epoch_anew_and_validates_each_image_once():
    data = module()
    recorder = fit(data)
    assert len(recorder.seen) == 20 and recorder.evaluated == 80
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.set_epoch(epoch)
        expected = [images.double().sum((1, 2, 3)).tolist() for images, _ in loader]
        assert recorder.seen[10 * epoch : 10 * epoch + 10] == expected
    assert recorder.seen[:10] != recorder.seen[10:]


def test_without_validation_images_a_trainer_skips_validation():
    data = module(validation=0)
    assert not data.val_dataloader() and data.train_size == 200
    assert fit(data).evaluated == 0


@pytest.mark.parametrize("step", [4, 10, 13])
def test_training_killed_at_any_step_resumes_with_the_batches_it_had_left(step, tmp_path):
    whole = fit(module(augment={"padding": 1, "flip": True}))
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=step, save_top_k=-1)
    fit(module(augment={"padding": 1, "flip": True}), enable_checkpointing=True, callbacks=[keep])
    resumed = fit(module(augment={"padding": 1, "flip": True}), checkpoint=tmp_path / f"step={step}.ckpt")
    assert resumed.seen == whole.seen[step:]
    assert torch.equal(resumed.net.weight, whole.net.weight)


def test_a_data_module_can_be_sent_to_another_process():
    copy = pickle.loads(pickle.dumps(module()))
    assert torch.equal(copy.splits.train.images, module().splits.train.images)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"validation": 200}, "dataset.validation=200"),
        ({"validation": -1}, "dataset.validation=-1"),
        ({"batch_size": 0}, "dataset.batch_size=0"),
        ({"batch_size": "many"}, "dataset.batch_size=many"),
        ({"limit_train": 0}, "dataset.limit_train=0"),
        ({"augment": {"padd": 4}}, "dataset.augment.padd is unknown.*padding"),
        ({"mean": (0.5, 0.5, 0.5)}, "dataset.mean and dataset.std"),
    ],
)
def test_impossible_options_are_refused_in_one_line(options, names):
    with pytest.raises(UsageError, match=names) as error:
        module(**options).setup()
    assert "\n" not in str(error.value)


def test_test_images_of_another_shape_are_refused():
    data = DataModule.from_arrays(arrays(20), (torch.zeros(4, 1, 8, 8), [0] * 4))
    with pytest.raises(UsageError, match="one shape"):
        data.setup()


def test_numbers_to_be_estimated_reach_the_batches_as_they_are():
    images, numbers = arrays(200)[0], torch.linspace(-1, 1, 200)
    data = DataModule.from_arrays((images, numbers), (images[:40], numbers[:40]), batch_size=16, limit_train=100)
    assert data.num_classes == 1 and data.train_size == 100
    _, targets = next(iter(data.train_dataloader()))
    assert targets.dtype == torch.float32 and set(targets.tolist()) <= set(numbers.tolist())
    mixed = DataModule.from_arrays((images, numbers), (images[:2], torch.zeros(2, dtype=torch.long)), num_classes=1)
    with pytest.raises(UsageError, match=r"with a number each\), the test set"):
        mixed.setup()


def test_the_data_package_does_without_lightning():
    code = "import sys, budgetnet.data as d; d.DeviceLoader; sys.exit('pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- the configurations ------------------------------------------------------------------------------------------


def configured(name: str, *overrides: str) -> DataModule:
    extra = ["+seed=3", "+trainer.channels_last=true", f"+dataset={name}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[*extra, *(f"dataset.{override}" for override in overrides)])
    section = OmegaConf.to_container(config.dataset, resolve=True)
    options = DatasetOptions(**{key: value for key, value in section.items() if key in names_of(DatasetOptions)})
    data = make_data(options, section)
    assert data.name == name and data.seed == 3
    return data


def test_digits_run_from_their_configuration():
    data = configured("digits")
    assert (data.train_size, data.input_shape, data.num_classes, data.baseline_epochs) == (1257, (1, 28, 28), 10, 60)
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 180
    assert sum(len(labels) for _, labels in data.test_dataloader()) == 360
    measured = configured("digits", "mean=null", "std=null", "validation=0")
    assert [round(value, 4) for value in measured.mean + measured.std] == [*data.mean, *data.std]
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (64, 1, 28, 28) and images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "folder", "size", "shape", "classes"),
    [
        ("cifar10", "cifar-10-batches-py", 45_000, (3, 32, 32), 10),
        pytest.param("cifar100", "cifar-100-python", 45_000, (3, 32, 32), 100, marks=pytest.mark.soak),
        ("mnist", "MNIST/raw", 55_000, (1, 28, 28), 10),
    ],
)
def test_published_sets_run_from_their_configuration(data_root, name, folder, size, shape, classes):
    if not (data_root / folder).is_dir():
        pytest.skip(f"{data_root} does not hold {folder}")
    data = configured(name, f"root={data_root}", "download=false")
    assert (data.train_size, data.input_shape, data.num_classes) == (size, shape, classes)
    assert len(data.splits.validation) == 5000 and len(data.splits.test) == 10_000
    mean, std = data.source(data_root, False)[0].statistics()
    assert [round(value, 4) for value in mean + std] == [*data.mean, *data.std]


def test_an_image_folder_runs_from_the_imagenet_configuration(tmp_path):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (40, 30), (number * 20, 90, 200)).save(tmp_path / part / name / f"{number}.jpg")
    options = [f"root={tmp_path}", "image_size=16", "batch_size=4", "validation=4", "workers=0"]
    data = configured("imagenet", *options)
    assert (data.train_size, data.input_shape, data.num_classes, data.steps_per_epoch()) == (8, (3, 16, 16), 2, 2)
    assert [len(labels) for _, labels in data.train_dataloader()] == [4, 4]
    assert data.splits.validation.labels.bincount().tolist() == [2, 2]


@pytest.mark.parametrize("path", sorted((CONF / "dataset").glob("[a-z]*.yaml")), ids=lambda path: path.stem)
def test_every_dataset_configuration_opens_with_a_command_that_uses_it(path):
    assert path.read_text().startswith(f"# python -m src.run dataset={path.stem} ")
