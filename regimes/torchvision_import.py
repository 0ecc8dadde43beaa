"""Import of torchvision that also works with a build of torch that does not match its compiled operators."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

_KEPT: list[Any] = []  # a library's operators exist as long as its object


def is_missing_operator(error: BaseException) -> bool:
    """Return whether importing torchvision failed for want of its compiled operators."""
    return "torchvision::nms does not exist" in str(error)


def torchvision() -> ModuleType:
    """Return torchvision with its data sets and models.

    A torchvision wheel built for CUDA cannot load its compiled operators with a CPU build of torch, and its import
    fails, because two Python functions refer to them. On that error the two operators are declared without an
    implementation and the import is repeated: data sets, transforms and models work, ``torchvision.ops.nms`` does not.
    """
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if not is_missing_operator(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
        for name in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision
    import torchvision.datasets

    module: ModuleType = torchvision
    return module
