"""Multiply-accumulates of a whole network, as counted by torch's own counter."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from regimes.data.inputs import Inputs, call


def count_macs(model: nn.Module, inputs: Inputs) -> int:
    """Return the multiply-accumulates of a forward pass of one input: half of what torch's counter of operations says.

    Convolutions and products of matrices count wherever they are: in layers, in projections of attention, in every step
    of a recurrent layer, between bare parameters. Biases, normalisation and activations do not count, and neither do
    the scores inside torch's fused attention (``F.scaled_dot_product_attention``), which its counter does not see on
    the CPU, where all networks are counted.
    """
    counted = copy.deepcopy(model).cpu().eval().requires_grad_(True)  # without gradients attention is one operation
    one = inputs[:1].to(torch.device("cpu"))
    with warnings.catch_warnings(), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        warnings.simplefilter("ignore")  # of oneDNN about other devices
        with torch.backends.mkldnn.flags(enabled=False):  # with oneDNN an LSTM is one operation
            call(counted, one)
    return counter.get_total_flops() // 2
