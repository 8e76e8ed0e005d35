"""window_product by the batch norm's ops, until the kernel has an op of its own."""

import torch

if not hasattr(torch.ops.tandem, "window_product"):
    _library = torch.library.Library("tandem", "FRAGMENT")
    _library.define(
        "window_product(Tensor planes, int T, Tensor weight, str precision, int[] stride, int[] padding, "
        "int[] dilation, int groups) -> Tensor"
    )

    def _window_product(planes, T, weight, precision, stride, padding, dilation, groups):  # type: ignore
        samples = planes.shape[1]
        planes = torch.cat([planes, planes.new_zeros(planes.shape[0], 2, *planes.shape[2:])], 1)
        weight = weight.float() if weight.dtype == torch.int8 else weight
        neuron = None, None, None, 1e-5, None, None, None, T, 1.0, 1.0, "relu", False
        geometry = (stride, padding, dilation, groups) if stride else ()
        op = torch.ops.tandem.conv_bn_if if stride else torch.ops.tandem.linear_bn_if
        return op(planes, T, weight, precision, *geometry, *neuron)[4][:samples]

    for _key in ("CPU", "CUDA"):
        _library.impl("window_product", _window_product, _key)
