"""Data sets as device-resident tensors, and augmentation as tensor operations.

A new data set is one file beside this one and one line here; a user's own is a function named by its import path that
returns a `Dataset` (see `Dataset.from_arrays`).
"""

DATASETS = {
    "digits": "regimes.data.digits:digits",
    "cifar10": "regimes.data.cifar_svhn:cifar10",
    "cifar100": "regimes.data.cifar_svhn:cifar100",
    "svhn": "regimes.data.cifar_svhn:svhn",
    "tinyimagenet": "regimes.data.imagefolder:tinyimagenet",
    "imagefolder": "regimes.data.imagefolder:imagefolder",
    "synthetic": "regimes.data.synthetic:synthetic",
}

AUGMENTATIONS = {
    "none": "regimes.data.augment:NONE",
    "shift": "regimes.data.augment:SHIFT",
    "crop-flip": "regimes.data.augment:CROP_FLIP",
}
