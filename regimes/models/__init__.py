"""Networks that can be swept.

A new model is one file beside this one and one line here. A builder takes ``input_shape`` and ``classes`` and any
options of its own, and returns a freshly initialised ``nn.Module``; a user's own is named by its import path.
"""

GIVEN = ("input_shape", "classes")  # what the engine passes to every builder; the rest are the user's options

MODELS = {
    "mlp": "regimes.models.mlp:MLP",
    "preresnet": "regimes.models.preresnet:PreResNet",
}
