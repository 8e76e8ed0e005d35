"""Checkpoints and stores: damage, exact resumption after any kind of end, what stays when nothing can be written."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from tandem_snn.cli import main
from tandem_snn.container import atomically
from tandem_snn.errors import Interrupted, UserError
from tandem_snn.training import Interruption, Recipe, Store, Trainer, fit, load_checkpoint, read_recipe, save_checkpoint
from tandem_snn.training.checkpoint import pack, unpack
from tandem_snn.training.store import NEWEST, PREVIOUS, locked

# Dropout and augmentation, so that the random numbers of the steps matter.
RECIPE = Recipe(model="FC64-D0.2-FC64", augment=("shift:1",), epochs=3, seed=5)


@pytest.fixture(scope="module")
def digits():
    return RECIPE.load()


def build(digits, recipe=RECIPE):
    torch.manual_seed(recipe.seed)
    return recipe.build(digits)


def assert_equal(net, other):
    ours, theirs = net.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


# --- files ------------------------------------------------------------------------------------------------------------


def test_checkpoints_carry_their_recipe(digits, tmp_path):
    net, other = RECIPE.build(digits), RECIPE.build(digits)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, net, RECIPE, kind="SNN")
    assert read_recipe(path) == RECIPE
    assert load_checkpoint(path, other)["kind"] == "SNN"
    assert_equal(net, other)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_shared_and_strided_tensors_survive(tmp_path):
    a = torch.arange(24.0).view(2, 3, 4)
    tensors = {"a": a, "view": a[0], "turned": a.movedim(0, -1), "empty": torch.empty(0), "number": torch.tensor(3)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack(tensors, {"facts": [1, None, 0.1]}))
    loaded, facts = unpack(path)
    assert facts == {"facts": [1, None, 0.1]}
    assert all(torch.equal(tensors[key], loaded[key]) for key in tensors)


def test_every_byte_is_checked(tmp_path):
    path = tmp_path / "x.safetensors"
    content = pack({"weight": torch.arange(6.0)}, {"recipe": Recipe().to_dict()})
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"x\.safetensors"):
            unpack(path)
    for cut in (0, 4, 8, 100, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match="damaged"):
            unpack(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(UserError, match="damaged"):
        unpack(path)


def test_bad_checkpoints_are_refused(digits, tmp_path):
    net, path = RECIPE.build(digits), tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(path, net)
    save_checkpoint(path, net, RECIPE)
    with pytest.raises(UserError, match=r"another model: fc1.weight is \[64, 64\] there and \[128, 64\] in the model"):
        load_checkpoint(path, Recipe(model="mlp", width=0.5).build(digits))
    with pytest.raises(UserError, match=r"another model: .* absent"):
        load_checkpoint(path, Recipe(model="cnn").build(digits))
    from safetensors.torch import save_file

    save_file(net.state_dict(), path)
    with pytest.raises(UserError, match="was not written by tandem-snn"):
        load_checkpoint(path, net)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path, kept = tmp_path / "summary.json", tmp_path / "old.json"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomically(path, fail, keep=kept)
    assert path.read_text() == "old"
    atomically(path, lambda temporary: temporary.write_text("new"), keep=kept)
    assert (path.read_text(), kept.read_text()) == ("new", "old")
    assert sorted(tmp_path.iterdir()) == [kept, path]


# --- resuming ---------------------------------------------------------------------------------------------------------


class After:
    """Asks to stop after so many steps."""

    def __init__(self, steps):
        self.left = steps
        self.signal = signal.SIGINT

    def requested(self):
        self.left -= 1
        return self.left < 0


VARIANTS = {
    "adam": {},
    "sgd": {"optimizer": "sgd", "lr": 0.05, "schedule": "multistep", "milestones": (1, 2)},
    "bf16": {"precision": "bf16", "clip_grad_norm": 1.0, "synops_penalty": 0.1},
    "fp16": {"precision": "fp16", "optimizer": "adamw", "weight_decay": 0.01},
    "no validation": {"validation": False},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_goes_on_bit_for_bit(name, tmp_path):
    recipe = replace(RECIPE, **VARIANTS[name])
    split = recipe.load()
    whole = build(split, recipe)
    expected = fit(whole, split, recipe)
    for steps in (0, 7):  # each process takes a few more steps
        with pytest.raises(Interrupted, match="--resume"):
            fit(build(split, recipe), split, recipe, store=Store(tmp_path), interruption=After(steps))
        assert (tmp_path / NEWEST).exists()
    net = build(split, recipe)
    fitted = fit(net, split, recipe, store=Store(tmp_path))
    assert_equal(net, whole)
    timing = ("seconds", "images_per_second")
    cut = [[{k: v for k, v in r.items() if k not in timing} for r in f.history] for f in (fitted, expected)]
    assert cut[0] == cut[1]
    assert (fitted.test, fitted.epoch) == (expected.test, expected.epoch)
    # Finished: loaded, not trained again.
    again = build(split, recipe)
    assert fit(again, split, recipe, store=Store(tmp_path)) == fitted
    assert_equal(again, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.csv", "metrics.jsonl", "model.safetensors", "result.json",
    ]  # fmt: skip


def test_stopping_at_the_end_of_an_epoch(digits, tmp_path):
    whole = build(digits)
    fit(whole, digits, RECIPE)
    steps = len(digits.train) // RECIPE.batch_size
    with pytest.raises(Interrupted, match=f"after 0 of 3 epochs and {steps} of {steps} steps"):
        fit(build(digits), digits, RECIPE, store=Store(tmp_path), interruption=After(steps - 1))
    net = build(digits)
    fit(net, digits, RECIPE, store=Store(tmp_path))
    assert_equal(net, whole)


def test_the_previous_checkpoint_serves_when_the_newest_is_damaged(digits, tmp_path):
    whole = build(digits)
    fit(whole, digits, RECIPE)
    with pytest.raises(Interrupted):
        fit(build(digits), digits, RECIPE, store=Store(tmp_path, steps=3), interruption=After(8))
    newest = tmp_path / NEWEST
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    trainer = Trainer(build(digits), digits, RECIPE)
    assert Store(tmp_path).restore(trainer)
    assert trainer.step == 6
    net = build(digits)
    fit(net, digits, RECIPE, store=Store(tmp_path))
    assert_equal(net, whole)


def test_what_cannot_be_continued_is_refused(digits, tmp_path):
    with pytest.raises(Interrupted):
        fit(build(digits), digits, RECIPE, store=Store(tmp_path), interruption=After(3))
    with pytest.raises(UserError, match=r"another recipe: lr is 0\.002 there and 0\.001 here"):
        fit(build(digits), digits, replace(RECIPE, lr=1e-3), store=Store(tmp_path))
    for name in (NEWEST, PREVIOUS):
        (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="damaged"):
        fit(build(digits), digits, RECIPE, store=Store(tmp_path))


def test_logs(digits, tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(Interrupted):
        fit(build(digits), digits, RECIPE, store=Store(tmp_path, tensorboard=True), interruption=After(30))
    fit(build(digits), digits, RECIPE, store=Store(tmp_path, tensorboard=True))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header.split(",") == list(records[0])
    assert len(rows) == 3
    assert "validation_accuracy" in header
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(digits, tmp_path):
    recipe = replace(RECIPE, lr=0.01, optimizer="sgd", schedule="multistep", milestones=(1,), lr_factor=1e35)
    with pytest.raises(
        UserError, match=r"weights became infinite or NaN after 1 .* last good checkpoint is that after 1"
    ):
        fit(build(digits, recipe), digits, recipe, store=Store(tmp_path, steps=1))
    trainer = Trainer(build(digits, recipe), digits, recipe)
    assert Store(tmp_path).restore(trainer)
    assert all(value.isfinite().all() for value in trainer.net.state_dict().values())


# --- signals, full disks, other runs ----------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
from pathlib import Path
from tandem_snn.cli import main
from tandem_snn.container import atomically
torch.set_num_threads(1)
options = "--model mlp --epochs 6 --width 0.25 --seeds 1 --checkpoint-steps 5".split()
sys.exit(main(["train", "digits", *options, *sys.argv[1:]]))
"""


def start(*arguments, **options):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, arguments)], stderr=subprocess.PIPE,
                            stdout=subprocess.DEVNULL, text=True, **options)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    process = start("--out", folder)
    assert process.wait() == 0
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "twin.safetensors")}


def weights(content, tmp_path):
    path = tmp_path / "compared.safetensors"
    path.write_bytes(content)
    tensors, _ = unpack(path)
    path.unlink()
    return tensors


def assert_same_weights(folder, uninterrupted):
    for name, content in uninterrupted.items():
        ours, theirs = weights((folder / name).read_bytes(), folder), weights(content, folder)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


def test_killed_at_random_moments_it_goes_on_bit_for_bit(uninterrupted, tmp_path):
    pause = random.Random(1)
    for _ in range(3):
        process = start("--out", tmp_path, "--resume")
        wait_for(tmp_path / "seed-0", process)
        time.sleep(pause.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("--out", tmp_path, "--resume").wait() == 0
    assert_same_weights(tmp_path, uninterrupted)


def test_ctrl_c_writes_a_checkpoint(uninterrupted, tmp_path):
    process = start("--out", tmp_path)
    wait_for(tmp_path / "seed-0" / "snn" / NEWEST, process)
    process.send_signal(signal.SIGINT)
    error = process.stderr.read()
    assert process.wait() == 128 + signal.SIGINT
    assert error.count("\n") == 1
    assert "--resume" in error
    assert start("--out", tmp_path, "--resume").wait() == 0
    assert_same_weights(tmp_path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_heard_after_the_step(number, digits, tmp_path):
    def on_step(trainer):
        if trainer.step == 4:
            signal.raise_signal(number)

    with Interruption() as interruption, pytest.raises(Interrupted) as stopped:
        fit(build(digits), digits, RECIPE, store=Store(tmp_path), on_step=on_step, interruption=interruption)
    assert stopped.value.signal == number
    trainer = Trainer(build(digits), digits, RECIPE)
    assert Store(tmp_path).restore(trainer)
    assert trainer.step == 4


def test_two_runs_in_one_folder_refuse_each_other(tmp_path, capsys):
    with locked(tmp_path / "run"):
        assert main(["train", "--out", str(tmp_path / "run")]) == 2
    assert "is in use by another run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_the_last_good_checkpoint(digits, tmp_path):
    """A limit on the size of files stands for the disk: the kernel refuses to write in the same way."""
    net = build(digits)
    with pytest.raises(Interrupted):
        fit(net, digits, RECIPE, store=Store(tmp_path), interruption=After(3))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"cannot be written \(File too large\).*last good checkpoint is that after 0"
        ):
            fit(build(digits), digits, RECIPE, store=Store(tmp_path, steps=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot be written to .*--out"), locked(tmp_path):
        pass


def test_the_second_signal_acts_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before
