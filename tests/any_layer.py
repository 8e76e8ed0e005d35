"""Any layer of tandem_ext.functional with any arguments, drawn by a ``random.Random``, and compared with the reference.

Hypothesis draws for test_functional.py, seeds for gpu/correctness.py, which has neither pytest nor hypothesis.
"""

import math

import torch
from cases import WINDOWS, assert_same, bursts, compute_dtype, dyadic, is_channels_last, train, views

import tandem_ext as te

f, ref = te.functional, te.reference
PRODUCTS = ("scan", "linear", "linear_bn", "conv", "conv_bn")
# Of a gradient's largest number and 1: a sum rounds by the root of how many numbers are added up.
BOUNDS = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}


def chance(random):
    return random.choice([True, False])


def neurons(random, T, shape, dtype=torch.float32, device=None, timing="step"):
    """Keyword arguments of neurons [B, C, *space], all of them dyadic but thresholds given as tensors."""
    C = compute_dtype(dtype)
    channels = shape[1] if len(shape) > 1 else 1
    vector = lambda **k: dyadic(channels, dtype=C, device=device, **k)  # noqa: E731
    own = torch.rand(channels, dtype=C, device=device) + 0.1
    thresholds = [own, own[0]] if channels else [2.0]
    step = timing == "step"
    R = T if step else random.choice([T, *WINDOWS])  # of the residual's train
    residual = random.choice([
        lambda: None, lambda: train(R, *shape, gain=random.choice([1.0, 0.5, 4.0]), device=device),
        lambda: dyadic(T, *shape, dtype=C, device=device),
    ])  # fmt: skip
    v_inits = [dyadic(*shape[1:], dtype=C, device=device), dyadic(*shape, dtype=C, device=device)]
    steps = random.choice([None, T, 2 * T] if step else [None, *WINDOWS])
    return {
        "threshold": random.choice(random.choice([[1.0, 0.5, 1.25], thresholds])),
        "v_init": random.choice([random.choice([0.0, 0.5, -0.25]), *v_inits]),
        "scale": vector(low=1) if chance(random) else None,
        "shift": vector() if chance(random) else None,
        "residual": residual(),
        "gate": random.choice(["relu", "clip"]),
        "return_v": True,
        "steps": steps,
        **({"leak": random.choice([1.0, 1.0, 0.5])} if step else {"timing": "window"}),
    }


def practical_geometry(random, dims, most=2**15):
    """What conv_geometry gives, as networks have it, with as many lines and outputs as ``most`` products allow."""
    sizes = [16, 32, 48, 64, 96, 128, 192, 256]
    channels = random.choice(sizes)
    groups = math.gcd(channels, random.choice([1, 2, 4, 8, 32, channels]))
    kernel = random.choice([(1, 1), (3, 1), (1, 3), (3, 3), (5, 5)])[-dims:]
    stride, dilation = (tuple(random.choice([1, 1, 2]) for _ in kernel) for _ in range(2))
    padding = tuple(random.choice([0, d * (k - 1) // 2]) for k, d in zip(kernel, dilation, strict=True))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    width = max(least[-1], random.choice([7, 14, 16, 28, 30, 32, 48, 56]))
    inputs = channels // groups
    line = inputs * math.prod(kernel) * ((width - least[-1]) // stride[-1] + 1) * groups  # products of an output
    outputs = max(1, min(random.choice(sizes) // groups, most // line))
    lines = max(1, min(random.randint(1, width), most // (line * outputs)))
    space = (least[0] + (lines - 1) * stride[0], width)[-dims:]
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (outputs * groups, inputs, *kernel), (channels, *space), window


def conv_geometry(random):
    """(weight shape, features of the input, arguments) of a convolution: half of them are as in networks, the others of
    any small shape; wide and depthwise ones are among them.
    """
    dims = random.choice([1, 2])
    if chance(random):
        return practical_geometry(random, dims)
    each = lambda least, most: tuple(random.randint(least, most) for _ in range(dims))  # noqa: E731
    groups, inputs, outputs = random.choice([
        random.choice([(1, 64, 48), (40, 1, 1)]),
        (random.choice([1, 1, 2, 3]), random.randint(1, 12), random.randint(1, 12)),
    ])  # fmt: skip
    kernel, dilation, padding = each(1, 4), each(1, 2), each(0, 3)
    window = {"stride": each(1, 3), "padding": padding, "dilation": dilation}
    if chance(random):
        window |= {"stride": 1, "padding": random.choice(["same", "valid"])}
    padded = {"same": [9] * dims, "valid": [0] * dims}.get(window["padding"], padding)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padded, dilation, strict=True)]
    space = [random.randint(n, max(n, 9)) for n in least]
    return (outputs * groups, inputs, *kernel), (inputs * groups, *space), {**window, "groups": groups}


def laid_out(random, tensor):
    """The same values, which may lie otherwise in memory."""
    return list(views(tensor))[random.randint(0, 2)] if min(tensor.shape) and chance(random) else tensor


def evaluate(module, name, kind, x, leaves, options, needed):
    """The results of a layer, and the gradients of the tensors that need one."""
    v = {key: tensor.detach().requires_grad_(key in needed) for key, tensor in leaves.items()}
    residual = options["residual"]
    options = options | {key: v[key] for key in options.keys() & v.keys()}
    if "worth" in v:
        options["residual"] = te.SpikeTrain(residual.planes, residual.T, v["residual"], v["worth"])
    if kind == "currents":
        given_ = (v["x"],)
    elif kind in ("constant", "impulse"):
        given_ = (type(x)(v["x"], x.T, v["gain"]),)
    else:
        counts = v["x"] if "x" in needed else None
        given_ = (te.SpikeTrain(x.planes, x.T, counts, v["gain"], timing=x.timing),)
    result = getattr(module, name)(*given_, *([v["weight"]] if "weight" in v else []), **options)
    y, _ = result[0] if name == "bn_if" else result
    if not y.counts.requires_grad:
        return result, []
    torch.manual_seed(0)
    direction = dyadic(*y.shape, low=-8, high=8, unit=8, dtype=y.counts.dtype, device=y.device)
    return result, torch.autograd.grad(y.counts, [v[key] for key in needed], direction)


def drawn(random, product, timing, dtype, device=None):
    """(name, kind, input, leaves by name, options) of a call of any kind, and which leaves can have a gradient."""
    torch.manual_seed(random.randint(0, 2**16))
    norm, on = product.endswith("bn"), {"device": device}
    long = [300] if timing == "step" and dtype.itemsize > 2 else []  # in pieces; halves do not hold such counts
    T = random.choice([*WINDOWS, *long])
    kinds = ["currents", "constant", "impulse"] if product == "scan" else ["constant", "impulse", "train"]
    if product != "scan" and T < 256:
        kinds.append("bursts")
    kind, B = random.choice(kinds), random.randint(2, 5)
    name, geometry = "bn_if" if norm else f"{product}_if", {}
    if product == "scan":
        name = "if_scan"
        features = random.choice([(), (1,), (300,), (19, 5), (17, 4, 5)])
        B = random.randint(0, 3)
    elif product.startswith("linear"):
        features, B = (random.randint(0, 70),), B if norm else random.randint(0, 5)
        weight_shape = (random.randint(int(norm), 70), *features)
    else:
        weight_shape, features, geometry = conv_geometry(random)
        name = name if norm else f"conv{len(features) - 1}d_if"
    if kind in ("train", "bursts") and not norm and dtype != torch.float64 and chance(random):
        dtype = torch.int8
    C = compute_dtype(dtype)
    given_dtype = torch.float32 if dtype == torch.int8 else dtype

    gain = torch.tensor(random.choice([1.0, 0.5]), dtype=C, device=device)
    leaves = {"gain": gain}
    if kind in ("train", "bursts"):
        if dtype != torch.int8 and chance(random):
            leaves["gain"] = 2.0 ** torch.randint(-2, 2, features[:1], **on).to(C)
        counts = torch.randint(T + 1, (B, *features), **on)
        rate = random.choice([0.0, 0.1, 0.5, 1.0])
        x = te.SpikeTrain.from_counts(counts, T) if kind == "bursts" else train(T, B, *features, rate=rate, **on)
        leaves["x"] = x.counts.to(given_dtype)
        if kind == "train":
            x = te.SpikeTrain(laid_out(random, x.planes), T)
    else:
        shape = (T, B, *features) if kind == "currents" else (B, *features)
        leaves["x"] = laid_out(random, dyadic(*shape, dtype=dtype, **on))
        x = (te.ImpulseInput if kind == "impulse" else te.ConstantInput)(torch.zeros(B, *features, **on), T)
    if kind == "currents":
        del leaves["gain"]
    shape = (B, *features)
    if product != "scan":
        weight = torch.randint(-128, 128, weight_shape, dtype=dtype, **on) if dtype == torch.int8 else dyadic(
            *weight_shape, dtype=dtype, **on)  # fmt: skip
        shape = tuple(
            ref.linear_if(te.SpikeTrain.from_dense(torch.zeros(1, B, *features, **on)), weight, **geometry).shape
        )
        leaves["weight"] = laid_out(random, weight)
        leaves |= {"bias": dyadic(len(weight), dtype=C, **on)} if chance(random) else {}
    neuron = neurons(random, T, shape, dtype, device, timing)
    if dtype == torch.int8:
        neuron["scale"] = dyadic(len(weight), low=1, unit=4096, **on)
    if norm:
        neuron = {key: value for key, value in neuron.items() if key not in ("scale", "shift")}
        leaves |= {key: dyadic(len(weight), dtype=C, **on) for key in ("gamma", "beta") if chance(random)}
        geometry |= {"eps": random.choice([1e-5, 0.25])}
    if isinstance(neuron["residual"], te.SpikeTrain):
        leaves |= {"residual": neuron["residual"].counts.to(given_dtype), "worth": torch.tensor(0.25, dtype=C, **on)}
    elif neuron["residual"] is not None:
        leaves["residual"] = neuron["residual"]
    leaves |= {key: value for key in ("threshold", "scale", "shift") if torch.is_tensor(value := neuron.get(key))}
    options = geometry | neuron | {key: leaves[key] for key in ("bias", "gamma", "beta") if key in leaves}

    can = sorted(leaves.keys() - ({"weight"} if dtype == torch.int8 else set()) - ({"bias"} if norm else set()))
    return (name, kind, x, leaves, options), can


def check(random, product, timing, dtype, device):
    """A layer and its reference agree, with gradients for any of its arguments, and without."""
    call, can = drawn(random, product, timing, dtype, device)
    *_, leaves, options = call
    norm, C = product.endswith("bn"), compute_dtype(dtype)
    for needed in [], random.choice([can, random.sample(can, random.randint(1, len(can)))]):
        (ours, grads), (theirs, expected) = (evaluate(m, *call, needed) for m in (f, ref))
        assert_same(ours, theirs)
        y, v = ours[0] if norm else ours
        assert is_channels_last(y.stored, batch=1)
        assert is_channels_last(y.counts, batch=0)
        assert is_channels_last(v, batch=0)
        for key, a, b in zip(needed, grads, expected, strict=False):
            assert a.dtype == b.dtype
            # Through a small variance batch norm magnifies what rounds; of a gain it leaves little.
            rounds = options.get("eps", 1.0) < 0.1 or key == "gain" or dtype.itemsize == 2
            if b.numel() and not (norm and torch.float64 != C and rounds):
                added = max(1, y.counts.numel() / b.numel())
                magnified = 10 / math.sqrt(options["eps"]) if norm else 1  # a small variance magnifies what rounds
                scale = magnified * math.sqrt(added) * (1 + b.double().abs().max())
                # Sums of counts, or of their products, times gradients, which batch norm makes cancel.
                if norm and key in ("weight", "gain") and leaves["x"].numel():
                    most = leaves["x"].abs().max()
                    most = most * leaves["weight"].abs().flatten(1).sum(1).max() if key == "gain" else most
                    scale *= max(1.0, most.item())
                # Sums for a channel are float32; what they add up is rounded if it is divided by 1.25 or a weight's.
                summed = key not in ("x", "weight", "residual") and not (key == "gain" and a.dim())
                exact = summed and (torch.is_tensor(options["threshold"]) or options["threshold"] != 1.25)
                assert (a.double() - b.double()).abs().max() <= BOUNDS[C if exact else dtype] * scale, key


def check_practical(random, timing, layers=100, device=None):
    """Convolutions of spikes as networks have them are the reference's. Without gradients, so many take no time."""
    for _ in range(layers):
        torch.manual_seed(random.randint(0, 2**16))
        weight_shape, features, geometry = practical_geometry(random, random.choice([1, 2, 2]))
        T, shape = random.choice([1, 4, 8, 20]), (random.randint(1, 3), *features)
        x = train(T, *shape, device=device) if timing == "step" else bursts(T, *shape).to(device)
        kind = random.choice([{"dtype": torch.float32}, {"dtype": torch.bfloat16}, {"dtype": torch.int8, "unit": 1}])
        weight = dyadic(*weight_shape, device=device, **kind)
        options = geometry | {"timing": timing, "return_v": True}
        ours, theirs = (getattr(m, f"conv{len(features) - 1}d_if")(x, weight, **options) for m in (f, ref))
        assert_same(ours, theirs)
