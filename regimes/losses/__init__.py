"""Loss functions ``(outputs, targets) -> mean over the batch``; your own is named by its import path."""

LOSSES = {
    "cross-entropy": "regimes.losses.functions:cross_entropy",
    "binary-cross-entropy": "regimes.losses.functions:binary_cross_entropy",
    "mse": "torch.nn.functional:mse_loss",
}
