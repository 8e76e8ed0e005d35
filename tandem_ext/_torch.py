"""What this package uses of torch that is private: a release of torch may move it.

Each name has the reason why nothing public serves. All hold from torch 2.10, the oldest supported, to 2.13, the newest
tested. ``tests/torch/test_private_torch.py`` calls every one, so that what a release moves fails there by its name. No
other module uses a private name of torch.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch._subclasses
import torch.utils._python_dispatch
import torch.utils._pytree
import torch.utils.data._utils.collate
from torch import nn
from torch.autograd import Function, forward_ad
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

F = TypeVar("F", bound=Callable[..., Any])

# Of any number of dimensions, SyncBatchNorm and transposed convolutions among them.
BatchNorm = nn.modules.batchnorm._BatchNorm
Convolution = nn.modules.conv._ConvNd

# Tensors without values. Where a FakeTensorMode alone is on, torch.compiler.is_compiling is False.
FakeTensor = torch._subclasses.FakeTensor

# Sees each operator that is called while it is entered. torch documents it, in this private module.
DispatchMode = torch.utils._python_dispatch.TorchDispatchMode

# No mode sees the operators that are called within it: what the garbage collector calls is no part of a trace.
unseen = torch.utils._python_dispatch._disable_current_modes

# The type of the operators in exported graphs.
OpOverload = torch._ops.OpOverload

# Transforms, export and DDP see the tensors of classes that it registers.
pytree = torch.utils._pytree

# Whether torch.func.grad, vmap, ... are active: tensors inside do not say that they require a gradient.
transforms_active = torch._C._are_functorch_transforms_active

# Whether a tensor has a wrapper of torch.func around its values.
is_transformed = torch._C._functorch.is_functorch_wrapped_tensor

# Whether torch.autocast is on for any device. The public question is for one device, and takes longer.
autocast_active = torch._C._is_any_autocast_enabled

# The backward pass that runs, or -1. Saved tensors may be computed again in it; no public question tells.
backward_pass = torch._C._current_graph_task_id

# torch.convolution with more arguments, the last of which allows TF32: else that is a setting of the whole process.
torch_convolution = torch.ops.aten._convolution.default


def constant_result(function: F) -> F:
    """Let Dynamo call a function while it traces, as torch.compiler.assume_constant_result, which imports Dynamo."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def forward_mode_active() -> bool:
    """Return whether torch.autograd.forward_ad.dual_level, or torch.func.jvp, is active."""
    return forward_ad._current_level >= 0


def eager_apply(function: type[Function]) -> Callable[..., Any]:
    """Return ``function.apply`` for outside of transforms; ``Function.apply`` itself binds a signature, for 20 µs."""
    return super(Function, function).apply  # type: ignore[misc]


def arguments_of(overload: OpOverload) -> Any:
    """Return the arguments in the schema of an operator; each has a name, default_value and alias_info."""
    return overload._schema.arguments


def schema_of(overload: OpOverload) -> str:
    """Return the schema of an operator as text, without its namespace."""
    return str(overload._schema).partition("::")[2]


def forward_hooks(module: nn.Module) -> list[Callable[..., Any]]:
    """Return what calling the module does besides its ``forward``."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def remove_weight_hooks(module: nn.Module) -> None:
    """Make plain Parameters of the weights that hooks compute: those of pruning, weight norm and spectral norm."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
        elif isinstance(hook, WeightNorm):
            nn.utils.remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            nn.utils.remove_spectral_norm(module, hook.name)


def uncompiled(module: Any) -> Any:
    """Return the module that torch.compile was given, if this is what it returned, else the argument."""
    return getattr(module, "_orig_mod", module)


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return a module's children by name, as ``named_children``, but also those that are None or occur twice."""
    return module._modules


def versions_of(module: nn.Module) -> dict[str, tuple[torch.Tensor | None, int]]:
    """Return a module's own parameters and buffers, and how often each was changed in place."""
    tensors = {**module._parameters, **module._buffers}
    return {name: (t, 0 if t is None or t.is_inference() else t._version) for name, t in tensors.items()}


def set_children(module: nn.Module, children: dict[str, nn.Module | None]) -> None:
    """Replace all children of a copy, and give it dicts of its own for these, its parameters and its buffers."""
    module.__dict__["_modules"] = children
    for kind in ("_parameters", "_buffers"):
        module.__dict__[kind] = dict(module.__dict__[kind])


class WeightKeeper(nn.Module):
    """A module whose ``_forget_weights`` is called before its tensors are moved, cast or loaded."""

    def _forget_weights(self) -> None:
        raise NotImplementedError

    def _apply(self, *arguments: Any, **keywords: Any) -> Any:
        self._forget_weights()
        return super()._apply(*arguments, **keywords)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        self._forget_weights()
        super()._load_from_state_dict(*arguments, **keywords)


def register_collate(kind: type, join: Callable[..., Any]) -> None:
    """Let a DataLoader join samples of a type by ``join``, in its documented registry, which a private module has."""
    torch.utils.data._utils.collate.default_collate_fn_map[kind] = lambda batch, **_: join(batch)
