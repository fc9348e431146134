"""Images: read, split, augmented on the device in batches, shared among processes.

The Lightning side is `budgetnet.data.datamodule.DataModule`; nothing else here needs Lightning.
"""

from budgetnet.data.arrays import ImageArrays, hold_out, stratified_order
from budgetnet.data.device_loader import DeviceLoader
from budgetnet.data.folder import FolderLoader, ImageFolder, imagenet
from budgetnet.data.readers import cifar10, cifar100, digits, mnist

__all__ = [
    "DeviceLoader", "FolderLoader", "ImageArrays", "ImageFolder", "cifar10", "cifar100", "digits", "hold_out",
    "imagenet", "mnist", "stratified_order",
]  # fmt: skip
