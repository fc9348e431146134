"""Image datasets: reading, splitting, augmentation on the device, and sharding among processes.

`budgetnet.data.datamodule.DataModule` is the Lightning data module; no other file of this package needs Lightning.
"""

from typing import TYPE_CHECKING

from budgetnet.lazy import imported

if TYPE_CHECKING:
    from budgetnet.data.arrays import ImageArrays, hold_out, stratified_order
    from budgetnet.data.class_folders import read_class_folders
    from budgetnet.data.device_loader import DeviceLoader
    from budgetnet.data.folder import FolderLoader, ImageFolder
    from budgetnet.data.generated import shapes
    from budgetnet.data.readers import cifar10, cifar100, digits, mnist
    from budgetnet.data.segmentation import image_masks, part_labels

__all__ = [
    "DeviceLoader", "FolderLoader", "ImageArrays", "ImageFolder", "cifar10", "cifar100", "digits",
    "hold_out", "image_masks", "mnist", "part_labels", "read_class_folders", "shapes", "stratified_order",
]  # fmt: skip

__getattr__ = imported(
    __name__,
    {
        "arrays": "ImageArrays hold_out stratified_order",
        "class_folders": "read_class_folders",
        "device_loader": "DeviceLoader",
        "folder": "FolderLoader ImageFolder",
        "generated": "shapes",
        "readers": "cifar10 cifar100 digits mnist",
        "segmentation": "image_masks part_labels",
    },
)
