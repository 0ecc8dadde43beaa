"""Networks that can be swept.

A new model is one file beside this one and one line here. A builder takes ``input_shape`` and ``classes`` and any
options of its own, and returns a freshly initialised ``nn.Module``; a user's own is named by its import path.
"""

GIVEN = ("input_shape", "classes")  # what the engine passes to every builder; the rest are the user's options

MODELS = {
    "mlp": "regimes.models.mlp:MLP",
    "preresnet": "regimes.models.preresnet:PreResNet",
    "resnet": "regimes.models.resnet:ResNet",
    "resnet18": "regimes.models.resnet:ResNet18",
    "vgg": "regimes.models.vgg:VGG",
    "densenet": "regimes.models.densenet:DenseNet",
    "mobilenetv2": "regimes.models.torchvision_models:mobilenetv2",
    "torchvision": "regimes.models.torchvision_models:vision",
}
