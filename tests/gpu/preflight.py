"""What this Python's torch sees of a GPU, and what the extension was built for. Imports nothing else."""

import argparse
import json
import sys
import warnings
from typing import Any


def first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def look(on_gpu: bool) -> dict[str, Any]:
    """``why`` says why there is no ``card``; ``module`` why there is no extension."""
    try:
        import torch
    except ImportError as error:
        return {"why": f"{sys.executable} cannot import torch ({first(error)})"}
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0]}
    if on_gpu:
        try:
            torch.cuda.init()
            card = torch.cuda.get_device_properties(0)
            found |= {"card": card.name, "capability": f"{card.major}.{card.minor}", "properties": str(card)}
        except (AssertionError, RuntimeError) as error:
            found["why"] = f"torch {torch.__version__} sees none ({first(error)})"
            if torch.version.cuda is None:
                found["why"] += ", install a torch built for CUDA"
    try:
        import tandem_ext as te

        found["archs"] = te.build_info()["cuda_archs"]
        found["library"] = te.build_info().get("library") or te._C.__file__
    except (ImportError, OSError) as error:
        found["module"] = first(error)
    return found


def run(options: argparse.Namespace) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = look(not options.dry_run)
    found["notes"] = [str(warning.message) for warning in caught if warning.category is not DeprecationWarning]
    text = json.dumps(found)
    print(text)
    if options.result is not None:
        options.result.write_text(text)
    return 0
