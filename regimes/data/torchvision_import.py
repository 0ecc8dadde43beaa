"""torchvision, imported where it would otherwise refuse to: beside a build of torch without its compiled operators."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

_KEPT: list[Any] = []  # a library's operators live as long as its object


def torchvision() -> ModuleType:
    """Return torchvision with its data sets and models.

    A torchvision wheel linked to CUDA, beside a torch for CPUs, cannot load its compiled operators and then fails to
    import at all, because two Python functions refer to them. On that very error the two are declared, without a body,
    and the import is tried again: data sets, transforms and models work, ``torchvision.ops.nms`` does not.
    """
    import torch

    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
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
