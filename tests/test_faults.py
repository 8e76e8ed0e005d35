"""Training runs under what happens to them: kills, signals, full disks, vanished files, damage, clocks, other runs."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from test_checkpoints import RECIPE, After, assert_equal, build
from test_data import write_images
from test_distributed import free_port

from tandem_snn.cli import main
from tandem_snn.errors import Interrupted, UserError
from tandem_snn.training import Interruption, Store, Trainer, fit
from tandem_snn.training.checkpoint import NEWEST, PREVIOUS, RESULT, locked, unpack

# What DIES says: "call N" ends the process before the Nth time it opens, renames, removes or changes a file of the run,
# "second S" so long after its first step.
PROGRAM = """
import os, signal, sys, threading, torch
from tandem_snn.cli import main
from tandem_snn.training import Trainer
torch.set_num_threads(1)
kind, _, number = os.environ.get("DIES", "").partition(" ")
folder, calls = sys.argv[sys.argv.index("--out") + 1], 0
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def watch(event, arguments):
    global calls
    if event in ("open", "os.chmod", "os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(folder):
        calls += 1
        if calls > int(number):
            die()
if kind == "call":
    sys.addaudithook(watch)
elif kind == "second":
    step = Trainer.train_step
    def first(self, *batch):
        Trainer.train_step = step
        threading.Timer(float(number), die).start()
        step(self, *batch)
    Trainer.train_step = first
sys.exit(main(["train", "digits", *sys.argv[1:]]))
"""
OPTIONS = "--model mlp --width 0.25 --seeds 1 --checkpoint-steps 5"


def start(*arguments, dies="", **options):
    command = [sys.executable, "-c", PROGRAM, *OPTIONS.split(), "--epochs", "6", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"DIES": dies}, **options)  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return RECIPE.load()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert start("--out", folder).wait() == 0
    return folder


def assert_same_weights(folder, whole, names=("model", "twin")):
    for name in names:
        (ours, _), (theirs, _) = (unpack(path / f"{name}.safetensors") for path in (folder, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


@pytest.mark.parametrize(("kills", "epochs"), [(3, "6"), pytest.param(50, "25", marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_goes_on_bit_for_bit(kills, epochs, tmp_path):
    """Half of the kills are between two changes of files. A run that ends before its kill is followed by another."""
    draw, runs, killed, whole = random.Random(kills), 0, 0, tmp_path / "whole"
    assert start("--out", whole, "--epochs", epochs).wait() == 0
    while killed < kills:
        dies = f"call {draw.randrange(60)}" if draw.random() < 0.5 else f"second {draw.uniform(0, 0.6)}"
        process = start("--out", tmp_path / str(runs), "--resume", "--epochs", epochs, dies=dies)
        _, error = process.communicate(timeout=120)
        if process.returncode == 0:
            assert_same_weights(tmp_path / str(runs), whole)
            runs += 1
        else:
            assert process.returncode == -signal.SIGKILL, error
            killed += 1
    assert start("--out", tmp_path / str(runs), "--resume", "--epochs", epochs).wait() == 0
    assert_same_weights(tmp_path / str(runs), whole)
    left = {path.name for path in (tmp_path / str(runs)).rglob("*") if path.is_file()}
    assert {NEWEST, PREVIOUS}.isdisjoint(left)


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


def test_the_second_signal_acts_at_once():
    before = signal.getsignal(signal.SIGTERM)
    shells = signal.signal(signal.SIGINT, signal.default_int_handler)  # which in its background ignores the signal
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, shells)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_a_worker_that_dies_under_torchrun_is_replaced(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("""
import os, pathlib, signal, sys, torch
from tandem_snn.cli import main
from tandem_snn.training import Trainer
torch.set_num_threads(1)
step, mark = Trainer.train_step, pathlib.Path(sys.argv.pop(1))
def fatal(self, *batch):
    if os.environ["RANK"] == "1" and self.step == 17 and mark.exists():
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, *batch)
Trainer.train_step = fatal
options = "digits --set model=FC32 --seeds 1 --epochs 3 --checkpoint-steps 5 --resume".split()
sys.exit(main(["train", *options, *sys.argv[1:]]))
""")
    for name in "whole", "killed":
        mark = tmp_path / "mark"
        if name == "killed":
            mark.touch()
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1",
             f"--master-port={free_port()}", script, mark, "--out", tmp_path / name],
            capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert not mark.exists()
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")


@contextmanager
def disk(folder, options):
    """A file system of its own in ``folder``."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def change(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def test_a_full_disk_costs_no_checkpoint(uninterrupted, tmp_path, capsys):
    arguments = ["train", "digits", *OPTIONS.split(), "--epochs", "6", "--threads", "1", "--resume", "--out"]
    with disk(tmp_path / "small", "size=8k") as folder:
        for size in 16, 48, 200, 300:
            change(folder, f"size={size}k")
            assert main([*arguments, str(folder / "run")]) in (1, 2)
            error = capsys.readouterr().err
            assert re.fullmatch(r"tandem-snn: .*No space left on device.*\n", error), error
        change(folder, "size=4m")
        assert main([*arguments, str(folder / "run")]) == 0
        assert_same_weights(folder / "run", uninterrupted)


def test_a_limit_on_files_leaves_the_last_good_checkpoint(digits, tmp_path):
    with pytest.raises(Interrupted):
        fit(build(digits), digits, RECIPE, store=Store(tmp_path), interruption=After(3))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(
            UserError, match=r"cannot be written \(File too large\).*last good checkpoint was written after 0"
        ):
            fit(build(digits), digits, RECIPE, store=Store(tmp_path, steps=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_becomes_read_only(digits, tmp_path):
    whole = build(digits)
    fit(whole, digits, RECIPE)
    with disk(tmp_path / "disk", "size=8m") as folder:

        def on_step(trainer):
            if trainer.step == 8:
                change(folder, "ro")

        store = Store(folder / "run", steps=3)
        with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\).* was written .* 6 of"):
            fit(build(digits), digits, RECIPE, store=store, on_step=on_step)
        with pytest.raises(UserError, match=r"cannot be written to \(Read-only.*--out"), locked(folder / "run"):
            pass
        change(folder, "rw")
        net = build(digits)
        fit(net, digits, RECIPE, store=Store(folder / "run"))
    assert_equal(net, whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_vanish_in_the_middle_of_a_stream(workers, tmp_path):
    for part, n in ("train", 12), ("val", 2):
        write_images(tmp_path / "imagenet" / part, ["n01440764", "n01443537"], n, ".JPEG", size=(20, 20))
    recipe = replace(RECIPE, data="imagenet", size=8, model="FC16", augment=(), batch_size=4, validation=False)
    data = recipe.load(tmp_path, workers=workers)

    def on_step(trainer):
        if trainer.step == 2:
            (tmp_path / "imagenet" / "train").rename(tmp_path / "away")

    with pytest.raises(UserError, match=r"imagenet/train/n\d+/\d+.JPEG.*the last good checkpoint was written after"):
        fit(build(data, recipe), data, recipe, store=Store(tmp_path / "run", steps=1), on_step=on_step)
    (tmp_path / "away").rename(tmp_path / "imagenet" / "train")
    net, whole = build(data, recipe), build(data, recipe)
    fit(net, data, recipe, store=Store(tmp_path / "run"))
    fit(whole, data, recipe)
    assert_equal(net, whole)


def test_damage_anywhere_in_the_newest_checkpoint_is_noticed(digits, tmp_path):
    """A bit of each of 300 regions, one after another: the checkpoint before serves, and the run goes on as if."""
    whole = build(digits)
    fit(whole, digits, RECIPE)
    with pytest.raises(Interrupted):
        fit(build(digits), digits, RECIPE, store=Store(tmp_path, steps=3), interruption=After(8))
    newest = tmp_path / NEWEST
    content, draw = newest.read_bytes(), random.Random(0)
    trainer = Trainer(build(digits), digits, RECIPE)
    size = -(-len(content) // 300)
    for first in range(0, len(content), size):
        position = draw.randrange(first, min(first + size, len(content)))
        damaged = bytearray(content)
        damaged[position] ^= 1 << draw.randrange(8)
        newest.write_bytes(damaged)
        assert Store(tmp_path).restore(trainer)
        assert trainer.step == 6, position
    newest.write_bytes(content)
    assert Store(tmp_path).restore(trainer)
    assert trainer.step == 9
    newest.write_bytes(damaged)
    net = build(digits)
    fit(net, digits, RECIPE, store=Store(tmp_path))
    assert_equal(net, whole)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"recipe": 3}', "{}", '{"recipe": {}}', "\xff"])
def test_a_damaged_result_is_one_line(text, digits, tmp_path):
    recipe = replace(RECIPE, epochs=1)
    fit(build(digits, recipe), digits, recipe, store=Store(tmp_path))
    (tmp_path / RESULT).write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match=r"result.json (is damaged|belongs to another recipe).*--restart"):
        fit(build(digits, recipe), digits, recipe, store=Store(tmp_path))


def test_clocks_may_jump(digits, tmp_path, monkeypatch):
    whole = build(digits)
    fit(whole, digits, RECIPE)
    draw, saved = random.Random(0), []
    monkeypatch.setattr(time, "time", lambda: draw.uniform(-1e9, 1e10))
    save = Store.save
    monkeypatch.setattr(Store, "save", lambda self, trainer: saved.append(trainer.step) or save(self, trainer))
    net = build(digits)
    fit(net, digits, RECIPE, store=Store(tmp_path, seconds=1e6))
    assert_equal(net, whole)
    assert saved == []


def test_a_run_is_not_thrown_away_because_a_clock_went_back(tmp_path, monkeypatch, capsys):
    arguments = ["train", "--model", "FC16", "--epochs", "1", "--no-twin", "--out", str(tmp_path)]
    assert main([*arguments, "--seeds", "1"]) == 0
    os.utime(tmp_path / "summary.json", (4e9, 4e9))
    steps = iter(range(30))
    monkeypatch.setattr(Interruption, "requested", lambda self: next(steps) == 5)  # in the second seed of two
    assert main([*arguments, "--seeds", "2", "--resume"]) == 128 + signal.SIGTERM
    monkeypatch.undo()
    for path in (tmp_path / "seed-1").rglob("*"):
        if path.name in (NEWEST, PREVIOUS):
            path.unlink()  # as when the kill comes before the second seed's first checkpoint
    capsys.readouterr()
    assert main([*arguments, "--seeds", "2"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "seed-0" / "snn" / RESULT).exists()
    assert main([*arguments, "--seeds", "2", "--resume"]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["seeds"] == [0, 1]
    assert main([*arguments, "--seeds", "1", "--overwrite"]) == 0


def test_two_runs_in_one_folder_refuse_each_other(uninterrupted, tmp_path, capsys):
    process = start("--out", tmp_path)
    wait_for(tmp_path / "seed-0", process)
    for options in [], ["--resume"], ["--restart"]:
        assert main(["train", "--out", str(tmp_path), *options]) == 2
        assert "is in use by another run" in capsys.readouterr().err
    assert process.wait() == 0
    assert_same_weights(tmp_path, uninterrupted)
    with locked(tmp_path / "other"):
        assert main(["train", "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()
