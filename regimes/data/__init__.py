"""Data sets as device-resident tensors, and augmentation as tensor operations.

A new data set is one module in this folder and one line in `DATASETS`. Your own data set is a function that returns a
`Dataset` (see `Dataset.from_arrays`), named by its import path.
"""

DATASETS = {
    "digits": "regimes.data.digits:digits",
    "mnist1d": "regimes.data.mnist1d:mnist1d",
    "stdlib-text": "regimes.data.stdlib_text:stdlib_text",
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
