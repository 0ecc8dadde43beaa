"""Models that can be used by name.

A new model is one module in this folder and one line in `MODELS`. A builder takes ``input_shape``, ``classes`` and its
own options, and returns a freshly initialised ``nn.Module``. Your own builder is named by its import path.
"""

BUILDER_ARGUMENTS = ("input_shape", "classes")  # passed to every builder; the others are options of the model

MODELS = {
    "mlp": "regimes.models.mlp:MLP",
    "preresnet": "regimes.models.preresnet:PreResNet",
    "resnet": "regimes.models.resnet:ResNet",
    "resnet18": "regimes.models.resnet:ResNet18",
    "vgg": "regimes.models.vgg:VGG",
    "densenet": "regimes.models.densenet:DenseNet",
    "transformer": "regimes.models.transformer:Transformer",
    "mobilenetv2": "regimes.models.torchvision_models:mobilenetv2",
    "torchvision": "regimes.models.torchvision_models:vision",
}
