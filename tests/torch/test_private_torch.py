"""Every private name of torch that the package uses does what the package needs; tandem_ext/_torch.py says why."""

import ast
import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils import prune
from torch.utils.data import default_collate

from tandem_ext import _torch

ROOT = Path(__file__).resolve().parents[2]
ONE = torch.ones(1)


class Pair:
    def __init__(self, parts):
        self.parts = parts


class Kept(_torch.WeightKeeper):
    def __init__(self):
        super().__init__()
        self.weight, self.forgotten = nn.Parameter(torch.ones(2)), 0

    def _forget_weights(self):
        self.forgotten += 1


def in_context(context, answer):
    with context:
        return answer()


def operators_are_seen():
    class Seen(_torch.DispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            return 3 * op(*args, **(kwargs or {}))

    return in_context(Seen(), lambda: torch.add(ONE, ONE)) == 6


def nothing_is_seen():
    class Seen(_torch.DispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            raise AssertionError(op)

    return in_context(Seen(), lambda: in_context(_torch.unseen(), lambda: torch.add(ONE, ONE))) == 2


def fakes_are_known():
    return isinstance(in_context(FakeTensorMode(), lambda: torch.empty(2)), _torch.FakeTensor)


def weights_are_forgotten():
    module = Kept().double()
    nn.ModuleList([module]).load_state_dict({"0.weight": torch.zeros(2)})
    return module.forgotten == 2


def a_function_is_applied():
    x = ONE.clone().requires_grad_()
    _torch.eager_apply(Cubed)(x).backward()
    return x.grad == 3


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


def a_result_is_constant():
    read = _torch.constant_result(lambda: len(Path(__file__).read_bytes()) > 0)  # which Dynamo cannot trace
    return torch.compile(lambda x: x + read(), fullgraph=True, backend="eager")(ONE) == 2


def in_full(x):
    return _torch.torch_convolution(x, x, None, [1], [0], [1], False, [0], 1, False, False, True, False)


def schemas_name_arguments():
    found = [(a.name, a.default_value, a.alias_info) for a in _torch.arguments_of(torch.ops.aten.add_.Tensor)]
    return found[0][2].is_write and found[1:] == [("other", None, None), ("alpha", 1, None)]


def children_are_listed():
    module = nn.Sequential(nn.ReLU())
    module.register_module("none", None)
    return list(_torch.children_of(module).items()) == [("0", module[0]), ("none", None)]


def children_of_a_copy_are_replaced():
    module = nn.Sequential(nn.ReLU())
    other = copy.copy(module)
    _torch.set_children(other, {"only": nn.Tanh()})
    return [name for name, _ in (*module.named_children(), *other.named_children())] == ["0", "only"]


def changes_of_tensors_are_counted():
    module = nn.BatchNorm1d(1, affine=False)
    with torch.inference_mode():
        module.register_buffer("of inference", torch.zeros(1))
    before = _torch.versions_of(module)
    module.running_mean += 1
    after = _torch.versions_of(module)
    return [name for name, (_, version) in after.items() if version != before[name][1]] == ["running_mean"]


def hooks_are_seen():
    modules = [nn.ReLU() for _ in range(3)]
    modules[1].register_forward_hook(lambda *_: None)
    modules[2].register_forward_pre_hook(lambda *_: None)
    return [len(_torch.forward_hooks(module)) for module in modules] == [0, 1, 1]


def weights_become_plain():
    made = [
        prune.l1_unstructured(nn.Linear(3, 3), "weight", 2),
        nn.utils.weight_norm(nn.Linear(3, 3)),
        nn.utils.spectral_norm(nn.Linear(3, 3)),
    ]
    for module in made:
        _torch.remove_weight_hooks(module)
    return all(sorted(dict(module.named_parameters())) == ["bias", "weight"] for module in made)


def trees_know_classes():
    tree = _torch.pytree
    tree.register_pytree_node(Pair, lambda pair: (list(pair.parts), None), lambda parts, _: Pair(tuple(parts)))
    _, spec = tree.tree_flatten((Pair((1, 2)), 3), is_leaf=lambda value: isinstance(value, Pair))
    assert str(tree.GetAttrKey("name")) == ".name"
    assert tree.tree_unflatten([4, 5], spec) == (4, 5)
    assert tree.tree_map_only(int, lambda n: -n, Pair((1, "a"))).parts == (-1, "a")
    return tree.tree_leaves([Pair((1, 2)), {"key": 3}]) == [1, 2, 3]


def samples_are_joined():
    _torch.register_collate(Pair, lambda pairs: [pair.parts for pair in pairs])
    return default_collate([Pair(1), Pair(2)]) == [1, 2]


def backward_passes_are_known():
    x, seen = ONE.clone().requires_grad_(), [_torch.backward_pass()]
    x.register_hook(lambda _: seen.append(_torch.backward_pass()))
    x.sum().backward()
    return seen[0] == -1 < seen[1]


CHECKS = {
    "unseen": nothing_is_seen,
    "BatchNorm": lambda: all(isinstance(kind(3), _torch.BatchNorm) for kind in (nn.BatchNorm1d, nn.SyncBatchNorm)),
    "Convolution": lambda: all(isinstance(k(2, 3, 1), _torch.Convolution) for k in (nn.Conv1d, nn.ConvTranspose2d)),
    "DispatchMode": operators_are_seen,
    "FakeTensor": fakes_are_known,
    "OpOverload": lambda: isinstance(torch.ops.aten.add.Tensor, _torch.OpOverload),
    "WeightKeeper": weights_are_forgotten,
    "arguments_of": schemas_name_arguments,
    "autocast_active": lambda: in_context(torch.autocast("cpu", torch.bfloat16), _torch.autocast_active),
    "backward_pass": backward_passes_are_known,
    "children_of": children_are_listed,
    "constant_result": a_result_is_constant,
    "torch_convolution": lambda: in_full(ONE.view(1, 1, 1)).tolist() == [[[1.0]]],
    "eager_apply": a_function_is_applied,
    "forward_mode_active": lambda: in_context(forward_ad.dual_level(), _torch.forward_mode_active),
    "forward_hooks": hooks_are_seen,
    "is_transformed": lambda: torch.func.vmap(lambda x: x * _torch.is_transformed(x))(ONE) == 1,
    "pytree": trees_know_classes,
    "register_collate": samples_are_joined,
    "remove_weight_hooks": weights_become_plain,
    "schema_of": lambda: _torch.schema_of(torch.ops.aten.neg.default) == "neg(Tensor self) -> Tensor",
    "set_children": children_of_a_copy_are_replaced,
    "transforms_active": lambda: torch.func.vmap(lambda x: x * _torch.transforms_active())(ONE) == 1,
    "versions_of": changes_of_tensors_are_counted,
    "uncompiled": lambda: isinstance(_torch.uncompiled(torch.compile(nn.ReLU())), nn.ReLU),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CHECKS)
def test_a_private_name_of_torch_does_what_is_needed(name):
    assert CHECKS[name]()


def test_no_mode_is_active_without_cause():
    active = (_torch.autocast_active, _torch.forward_mode_active, _torch.transforms_active)
    assert not any(function() for function in active)
    assert not _torch.is_transformed(ONE)
    assert torch.func.jvp(lambda x: x * _torch.forward_mode_active(), (ONE,), (ONE,))[1] == 1


def test_private_names_of_torch_are_on_one_page():
    """Other names that begin with an underscore are the package's own, or a named tuple's."""
    files = [*ROOT.glob("tandem_ext/**/*.py"), *ROOT.glob("python/tandem_snn/**/*.py")]
    trees = {path: ast.parse(path.read_text()) for path in files if path.name != "_torch.py"}
    own, used, checked = {"_C", "_fields", "_replace"}, [], set()
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own.add(node.target.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.Attribute):
                used.append((node.attr, path, node.lineno))
            elif isinstance(node, ast.ImportFrom) and (node.module or "").endswith("_torch"):
                checked |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
                names = (*node.module.split("."), *(name.name for name in node.names))
                used += [(name, path, node.lineno) for name in names]
    private = [item for item in used if item[0].startswith("_") and not item[0].endswith("__") and item[0] not in own]
    assert not private
    assert checked == set(CHECKS)
