"""A network with several answers, of images and of their pixels."""

from collections import namedtuple

from torch import nn

import tandem_snn.nn as tnn


class Heads(nn.Module):
    """A backbone of convolutions, with answers for each pixel and each image from any of its layers."""

    def __init__(self, structure, timing="window", T=6, layers=3, bits=None, inputs=3, mode="direct"):
        super().__init__()
        self.structure = structure
        self.encoder = tnn.Encoder(T, mode)
        options = {"padding": 1, "norm": True, "timing": timing, "weight_bits": bits}
        channels = [inputs, *[8] * layers]
        self.layers = nn.ModuleList(tnn.Conv2d(a, 8, 3, **options) for a in channels[:-1])
        self.pixels = nn.ModuleList(tnn.ReadoutConv2d(8, 4, 2 * (n % 2) + 1, padding=n % 2) for n in range(layers))
        self.pool = nn.Sequential(tnn.AdaptiveAvgPool2d(1), tnn.Flatten())
        self.images = nn.ModuleList(tnn.Readout(8, 5, bias=n % 2 == 0, weight_bits=bits) for n in range(layers))

    def forward(self, x):
        x, pixels, images = self.encoder(x), [], []
        for layer, pixel, image in zip(self.layers, self.pixels, self.images, strict=True):
            x = layer(x)
            pixels.append(pixel(x))
            images.append(image(self.pool(x)))
        return self.structure(pixels, images)


Named = namedtuple("Named", ["boxes", "scores"])
STRUCTURES = {
    "tuple": lambda pixels, images: (pixels[0], images[-1]),
    "dict": lambda pixels, images: {"boxes": pixels[-1], "scores": images[1], "aux": images[0]},
    "nested": lambda pixels, images: {"levels": pixels[::-1], "heads": ({"a": images[0]}, images[2])},
    "one": lambda pixels, images: (images[0],),
    "sum": lambda pixels, images: images[0] + images[1] * 0.3 - images[2],
    "sums": lambda pixels, images: [pixels[0] + pixels[2], 0.5 * (images[2] + images[2]) + 0.25],
    "again": lambda pixels, images: (images[1], images[1], {"same": images[1]}),
}
