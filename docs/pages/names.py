"""Writes docs/api/names.md: the public names with their arguments and the first sentence of each docstring."""

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any, is_typeddict

from tables import markdown

from tandem_ext.functional import Neuron
from tandem_snn.nn import NeuronOptions

PAGE = Path(__file__).parents[1] / "api" / "names.md"
MODULES = ("tandem_snn.nn", "tandem_snn", "tandem_snn.measure", "tandem_snn.plots", "tandem_snn.tonic", "tandem_ext",
           "tandem_ext.functional")  # fmt: skip


def called(name: str, thing: Any) -> str:
    """As it is called, with defaults and without types; the keywords that all layers take are named by their type.

    What only functions make has just its name.
    """
    if dataclasses.is_dataclass(thing):
        return name
    if is_typeddict(thing):
        return f"{name}: {', '.join(thing.__annotations__)}"
    given, more = inspect.signature(thing).parameters, ""
    for options in NeuronOptions, Neuron:
        if options.__annotations__.keys() <= given.keys():
            given = {key: one for key, one in given.items() if key not in options.__annotations__}
            more = f", **{options.__name__})"
    plain = str(inspect.Signature([one.replace(annotation=inspect.Parameter.empty) for one in given.values()]))
    return name + (plain[:-1] + more if more else plain)


def first_sentence(thing: Any) -> str:
    paragraph = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[^.]\.) (?=[A-Z])", paragraph)[0]
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", sentence).replace("``", "`")


def page() -> str:
    """Names that another module above has are left out."""
    lines, seen = ["# All names", "", "`help(name)` has shapes, errors, equations and an example.", ""], []
    for module in map(importlib.import_module, MODULES):
        public = {name: getattr(module, name) for name in sorted(module.__all__)}
        new = {name: thing for name, thing in public.items() if callable(thing) and thing not in seen}
        rows = [(f"`{called(name, thing)}`", first_sentence(thing)) for name, thing in new.items()]
        lines += [f"## {module.__name__}", "", *markdown(("name", "what"), rows)]
        seen += new.values()
    return "\n".join(lines[:-1]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
