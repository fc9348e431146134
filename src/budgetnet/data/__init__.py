"""Image datasets: reading, splitting, augmentation on the device, and sharding among processes.

`budgetnet.data.datamodule.DataModule` is the Lightning data module; no other file of this package needs Lightning.
"""

from budgetnet.data.arrays import ImageArrays, hold_out, stratified_order
from budgetnet.data.device_loader import DeviceLoader
from budgetnet.data.folder import FolderLoader, ImageFolder, imagenet
from budgetnet.data.generated import shapes
from budgetnet.data.readers import cifar10, cifar100, digits, mnist
from budgetnet.data.segmentation import image_masks, part_labels

__all__ = [
    "DeviceLoader", "FolderLoader", "ImageArrays", "ImageFolder", "cifar10", "cifar100", "digits", "hold_out",
    "image_masks", "imagenet", "mnist", "part_labels", "shapes", "stratified_order",
]  # fmt: skip
