"""Writes the tables of docs/paper.md and docs/convert.md from what was measured: python docs/pages/claims.py"""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import performance
import results
from tables import markdown, with_table

DOCS = Path(__file__).parents[1]
PIXELS = 28 * 28
SWEEP = {1: "-t1", 2: "-t2", 4: "-t4", 8: "", 16: "-t16"}  # the recipes' names, by T
CLAIMS = ("claim", "paper", "here", "what differs here; recipe")
RESNETS = ("", "ANN", "T = 2", "T = 4", "T = 8")
CONVERTED = ("", "T", "accuracy, to the ANN's", "operations")


def read(name: str) -> Any:
    return json.loads((DOCS / "results" / f"{name}.json").read_text())


def run(name: str) -> dict[str, Any]:
    return results.read(DOCS / "results" / "training" / f"{name}.json")


def percent(name: str, kind: str = "") -> str:
    return f"{run(name)[f'{kind}test_accuracy']:.2f}"


def error(name: str, kind: str = "") -> str:
    """Of a reconstruction, per picture."""
    return f"{PIXELS * run(name)[f'{kind}test_mse']:.2f}"


def correlations(timing: str) -> str:
    """Of counts and activations, over the layers of all runs with eight steps."""
    runs = [run(path.stem) for path in sorted((DOCS / "results" / "training").glob("*.json"))]
    chosen = [one for one in runs if one["T"] == 8 and results.timing(one) == timing]
    layers = (layer for one in chosen for layer in one["mismatch"].values())
    found = [value for layer in layers if (value := layer["correlation"]) is not None]  # None where it is undefined
    return f"{min(found):.2f} to {max(found):.2f}"


def growth(quantity: str) -> str:
    """Of the cost of a training step from the least to the most steps."""
    by_T = performance.by_T(read("bench-1"), quantity)
    first, last = (by_T[choose(by_T)] for choose in (min, max))
    named = {"step timing": "tandem", "window timing": "windows", "BPTT": "BPTT"}
    return ", ".join(f"{name} × {last[way] / first[way]:.2g}" for name, way in named.items())


def rows() -> Iterator[tuple[str, str, str, str]]:
    jpeg, twin = "cifar10-jpeg-window-long", "cifar10-jpeg-window-from-twin"
    yield (
        "CIFAR-10, T = 8", "90.98 (h); its ANN 91.77 (m), with rounded activations 89.99 (l)",
        f"{percent(jpeg)}, its ANN {percent(jpeg, 'ann_')}; from the ANN {percent(twin)}, the ANN trained on "
        f"{percent(twin, 'ann_continued_')}",
        f"lossy images, {run(jpeg)['parameters'] / 1e6:.1f} of 44.5 million parameters, "
        f"{run(jpeg)['recipe']['epochs']} and twice {run(twin)['recipe']['epochs']} epochs, window timing; "
        f"`{jpeg}`, `{twin}`. Not run: `cifar10-full`",
    )  # fmt: skip
    seeds = ", ".join(str(len(run(f"fashion-mnist{one}")["per_seed"])) for one in SWEEP.values())
    yield (
        "accuracy saturates at few steps", "(m)",
        f"T = {', '.join(map(str, SWEEP))}: {', '.join(percent(f'fashion-mnist{one}') for one in SWEEP.values())}",
        f"Fashion-MNIST, from its ANN of {percent('fashion-mnist', 'ann_')}; seeds: {seeds}; "
        "`fashion-mnist-t1` to `-t16`",
    )  # fmt: skip
    yield (
        "ImageNet, AlexNet",
        "T = 10: 50.22 (h), 5: 46.63 (l)",
        "not run",
        "`imagenet`: 64×64, to fit into memory",
    )
    folds = read("folds")["n-mnist"]["SNN"]
    yield (
        "N-MNIST", "99.31, LIF neurons 99.22 (l)", f"{fmean(folds):.2f} ± {stdev(folds):.2f}",
        "1,100 recordings in five folds, quarter width; `n-mnist`. Not run: `n-mnist-full`",
    )  # fmt: skip
    yield "DVS-CIFAR10, T = 20", "65.59, LIF 63.73 (m)", "not run", "`dvs-cifar10`"
    step, window = "mnist-autoencoder", "mnist-autoencoder-window"
    yield (
        "regression: MNIST autoencoder, T = 32", "squared error 20.74 (l), perhaps per picture",
        f"per picture {error(step)}, its ANN {error(step, 'ann_')}; window timing {error(window)}, its ANN "
        f"{error(window, 'ann_')}",
        f"seeds: {len(run(step)['per_seed'])}, {len(run(window)['per_seed'])}; `{step}`, `{window}`",
    )  # fmt: skip
    yield "a tenth of others' steps (a)", "8 to 10 against 100 to 2,500 (m)", "below", ""
    sparse, stepping = (run(name) for name in ("fashion-mnist-window-sparse", "fashion-mnist"))
    yield (
        "a tenth of others' operations (a)", "0.32 (l), a converted VGG-9 25.6, spike backpropagation 3.61 (m)",
        f"below; with a penalty {sparse['synops_ratio']:.2f} at {sparse['test_accuracy']:.2f}, step timing "
        f"{stepping['synops_ratio']:.2f} at {stepping['test_accuracy']:.2f}",
        f"`{sparse['name']}`, `{stepping['name']}`",
    )  # fmt: skip
    yield (
        "training cost does not grow with T as in backpropagation through time", "(m)",
        f"T = 4 to 32: time {growth('time')}; extra memory {growth('peak')}", "[one CPU thread](performance.md)",
    )  # fmt: skip
    yield (
        "counts correlate with activations", "above 0.9 (m)",
        f"step timing {correlations('step')}, window timing {correlations('window')}", "each layer of each run, T = 8",
    )  # fmt: skip
    first = run("fashion-mnist")["per_seed"][0]["test_accuracy"]
    yield (
        "LIF neurons", "CIFAR-10: 89.04 (l)", f"{percent('fashion-mnist-lif')}, IF {first:.2f}",
        "Fashion-MNIST, one seed, no gradient of the leak; `fashion-mnist-lif`",
    )  # fmt: skip
    two = "fashion-mnist-window-from-twin-2bit"
    yield (
        "few-bit weights (the sequel's claim)", "",
        f"4 bits {percent('fashion-mnist-4bit')}, float {percent('fashion-mnist')}; window timing: ternary "
        f"{percent(two)}, float {percent('fashion-mnist-window-from-twin-sparse')}",
        f"Fashion-MNIST; `fashion-mnist-4bit`, `{two}`",
    )  # fmt: skip


def converted() -> Iterator[tuple[str, str, str, str]]:
    """Of each run its own measures, then those of its converted ANNs."""
    for one in read("converted"):
        data = results.NAMES[run(one["recipe"])["recipe"]["data"]]
        apart = one["test_accuracy"] - one["ann_test_accuracy"]
        yield f"{data}, trained, {one['timing']} timing", str(one["T"]), f"{apart:+.2f}", f"{one['synops_ratio']:.2f}"
        for T, at in one["converted"].items():
            cells = f"{at['to_ann'] + 0.0:+.2f}", f"{at['synops_ratio']:.1f}"
            yield f"ANN converted, step timing, seeds: {at['seeds']}", T, *cells


def resnets() -> Iterator[tuple[str, ...]]:
    """Of each data set the converted networks, then those after one distilled epoch; the ANN before and after it."""
    for one in read("resnet"):
        words = f"{results.NAMES[one['data']]}, {sum(one['blocks'])} blocks, {one['samples']:,} images"
        windows = one["T"].values()
        yield f"{words}: converted", f"{one['ann']:.2f}", *(f"{at['converted']:.2f}" for at in windows)
        cells = (f"{at['distilled']:.2f}" for at in windows)
        yield "after one distilled epoch", f"{one['ann_further_epoch']:.2f}", *cells


def document(page: str) -> str:
    """The page of the claims with the table of what is in docs/results."""
    page = with_table(page, "claims", markdown(CLAIMS, rows()))
    return with_table(page, "converted", markdown(CONVERTED, converted()))


def conversion(page: str) -> str:
    """The page of conversion with the table of what is in docs/results."""
    return with_table(page, "resnets", markdown(RESNETS, resnets()))


if __name__ == "__main__":
    for name, written in {"paper": document, "convert": conversion}.items():
        page = DOCS / f"{name}.md"
        page.write_text(written(page.read_text()))
