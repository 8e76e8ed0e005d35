"""Build networks by name or from the usual notation of architectures, as a spiking network or as its ANN twin.

| name | architecture | from |
| --- | --- | --- |
| mlp | FC256-FC256 | |
| cnn | 32C3-64C3s2-128C3s2-FC256 | |
| autoencoder | FC128-FC64-FC32-FC64-FC128, for regression | tandem learning |
| cifarnet | 128C3-256C3s2-512C3s2-1024C3-512C3-FC1024-D0.2 | tandem learning |
| alexnet-cifar | 96C3-256C3s2-384C3s2-384C3-256C3-FC1024-D0.2 | tandem learning |
| alexnet | AlexNet for 224×224, maximum pooling | |
| vgg11, vgg16 | VGG for 32×32, strides instead of pooling | progressive tandem learning |
| resnet18, resnet18-cifar | ResNet-18 for 224×224 and 32×32; two paths of currents into one layer of neurons | |
| n-mnist-net | cifarnet, for spike trains of 2×34×34 | tandem learning |
| dvs-cifar10-net | cifarnet with one more stride, for spike trains of 2×42×42 | own |
| dvs-gesture-net | 64C3s2-128C3s2-128C3s2-256C3s2-D0.5-FC256-D0.5, for spike trains of 2×128×128 | own |

nCk is a convolution with n channels, k×k, padded by k//2; sN sets its stride, pN its padding. FCn is a fully connected
layer. Both have batch norm and neurons. MPk and APk are maximum and average pooling, DP is dropout with probability P.
Every network ends with a linear readout.
"""

from .create import check_model, create_model, create_twin, list_models

__all__ = ["check_model", "create_model", "create_twin", "list_models"]
