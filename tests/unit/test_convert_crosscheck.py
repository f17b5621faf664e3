"""The cross-check agrees with PyTorch on a sound model, and names the stage of every fault that is planted in ours."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import convert.stages
import run
from convert.comparison import compare_all, first_out
from convert.crosscheck import Halves, crosscheck, make_task
from convert.recording import Recording, Task
from convert.stages import open_ours
from tests import clips
from tests.checkpoints import Format, Tower, draw, settings, shapes, write
from vqathinker_jax.model import layers, motion, vision
from vqathinker_jax.model.vlm import VLM
from vqathinker_jax.records import InputError

SMALL: dict[str, Any] = {"frames": 4, "image_size": 84, "tokens": 6, "slowfast": None}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    clips.write(path, 8)
    return path


def published(folder: Path, kind: Format = "chat", tower: Tower = "300M", *, motion: bool = True) -> Path:
    config = settings(kind, tower)
    if kind == "transformers":
        config["image_token_id"] = 425
    else:  # as InternVL3's releases have it
        dynamic = {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}
        config["llm_config"] |= {"rope_scaling": dynamic, "max_position_embeddings": 32768}
    return write(folder, config, draw(shapes(config, motion=motion)), shards=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("crosscheck") / "source")


@pytest.fixture(scope="module")
def still(source: Path) -> Path:
    """A source without a motion branch, which most faults do not need and most of compilation is."""
    return published(source.with_name("still"), motion=False)


def recorded(source: Path, clip: Path, *, tokens: int) -> Path:
    """The reference's half."""
    folder = source.with_name(f"{source.name}-half")
    inputs: dict[str, Any] = {**SMALL, "tokens": tokens}

    def make() -> Task:
        return make_task(source, clip, **inputs, dtype="float32", gradients=False)

    assert crosscheck(source, Halves(save=folder), make, folder, lambda text: None)
    return folder


@pytest.fixture(scope="module")
def half(source: Path, clip: Path) -> Path:
    return recorded(source, clip, tokens=6)


@pytest.fixture(scope="module")
def still_half(still: Path, clip: Path) -> Path:
    return recorded(still, clip, tokens=0)


@pytest.fixture
def suited(fault: str, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A source that has what a fault is planted in, and its recorded half."""
    names = ("source", "half") if "motion" in fault else ("still", "still_half")
    source, half = map(request.getfixturevalue, names)
    return source, half


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip: Path):
    """Run `crosscheck` as a user does; returns its exit status."""

    def call(checkpoint: Path, *more: object) -> int:
        sizes = ["--frames", 4, "--image-size", 84, "--tokens", 6, "--output", tmp_path / "report"]
        words = ["run.py", "crosscheck", "--checkpoint", checkpoint, "--video", clip, *sizes, *more]
        monkeypatch.setattr("sys.argv", list(map(str, words)))
        try:
            return run.main()
        except SystemExit as stop:
            return int(stop.code or 0)

    return call


@pytest.mark.parametrize("weights", ["memory", "disk"])
@pytest.mark.parametrize(("kind", "tower", "motion"), [("chat", "300M", True), ("transformers", "6B", False)])
def test_a_sound_model_agrees_with_pytorch_at_every_stage(
    command, tmp_path: Path, capsys, kind: Format, tower: Tower, motion: bool, weights: str
):
    assert command(published(tmp_path / "source", kind, tower, motion=motion), "--weights", weights) == 0
    printed = capsys.readouterr().out
    assert "stages agree in float32" in printed
    report = json.loads((tmp_path / "report" / "crosscheck.json").read_text())
    stages = [row["stage"] for row in report["stages"]]
    assert report["agree"]
    assert [stage for stage in stages if "quiet" not in stage and "motion" not in stage] == [
        "patch embedding",
        *[f"vision layer {i}" for i in range(2)],
        "projector",
        "prompt embedding",
        *[f"decoder layer {i}" for i in range(3)],
        "final norm",
        "logits",
        "greedy tokens",
    ]
    assert sum("motion" in stage for stage in stages) == (5 * 2 + 3 if motion else 0)
    assert all(0 < row["cosine"] < 1 + 1e-6 and row["within"] for row in report["stages"])
    assert all(stage in printed for stage in stages)
    with Image.open(tmp_path / "report" / "crosscheck.png") as picture:
        assert picture.size[0] > 1000
        assert len(picture.getcolors(1 << 20) or ()) > 3


def test_gradients_agree_with_pytorch(command, source: Path, tmp_path: Path, capsys):
    assert command(source, "--gradients") == 0, capsys.readouterr().out
    report = json.loads((tmp_path / "report" / "crosscheck.json").read_text())
    names = [row["stage"].removeprefix("gradient ") for row in report["stages"] if row["stage"].startswith("gradient")]
    assert names[0] == "lm_head.weight"
    assert "motion_mlp.0.weight" in names
    assert names.index("model.language_model.layers.2.mlp.up_proj.weight") < names.index(
        "model.language_model.layers.0.mlp.up_proj.weight"
    )
    assert len(names) == 91


def test_bfloat16_has_a_tolerance_of_its_own(command, source: Path, capsys):
    status, printed = command(source, "--dtype", "bfloat16"), capsys.readouterr().out
    assert status == 0, printed
    assert "stages agree in bfloat16" in printed


# Faults


def at(path: str, change: Callable[[jax.Array], jax.Array], layer: int | None = None) -> Callable[[VLM], None]:
    """A change of one array of the model, of one layer's where layers are stacked."""

    def plant(model: VLM) -> None:
        variable = attribute(model, path)
        whole = variable[...]
        variable.set_value(change(whole) if layer is None else whole.at[layer].set(change(whole[layer])))

    return plant


def attribute(model: VLM, path: str) -> Any:
    part: Any = model
    for name in path.split("."):
        part = part[int(name)] if name.isdigit() else getattr(part, name)
    return part


def transposed(weight: jax.Array) -> jax.Array:
    """As a matrix of 32 rows; nothing but its values shows it, as it is a square one."""
    return weight.reshape(32, 32).T.reshape(weight.shape)


def mirrored(kernel: jax.Array) -> jax.Array:
    """A convolution's, height and width exchanged."""
    return kernel.swapaxes(-3, -4)


def shifted(rows: jax.Array) -> jax.Array:
    return jnp.roll(rows, 1, axis=-1)


def swapped(kernel_E3NH: jax.Array) -> jax.Array:
    return kernel_E3NH[:, jnp.array([1, 0, 2])]


def epsilon(norm: str) -> Callable[[VLM], None]:
    def plant(model: VLM) -> None:
        part = attribute(model, norm)
        part.epsilon = {1e-6: 1e-5, 1e-5: 1e-6}[part.epsilon]

    return plant


def theta(model: VLM) -> None:
    model.language.config = replace(model.language.config, rope_theta=1e4)


def half_cubic(old: int, new: int) -> np.ndarray:
    """`_bicubic` with a = -0.5."""
    d = np.abs((np.arange(new)[:, None] + 0.5) * old / new - 0.5 - np.arange(-2, old + 2))
    a = -0.5
    near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    wide = np.where(d <= 1, near, np.where(d < 2, far, 0))
    wide[:, 2] += wide[:, :2].sum(1)
    wide[:, -3] += wide[:, -2:].sum(1)
    return wide[:, 2:-2].astype(np.float32)


def tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def training_mode(norm: motion.ConvNorm, x_PFYXC: jax.Array) -> jax.Array:
    """`ConvNorm.__call__` with the statistics of the batch."""
    y_PFYXC = motion.convolve(x_PFYXC, norm.kernel[...], *norm.strides)
    mean_C, variance_C = y_PFYXC.mean((0, 1, 2, 3)), y_PFYXC.var((0, 1, 2, 3))
    return (y_PFYXC - mean_C) * jax.lax.rsqrt(variance_C + norm.epsilon) * norm.scale[...] + norm.bias[...]


def motion_first(*arguments: Any, encode: Callable[..., jax.Array] = VLM.encode) -> jax.Array:
    return jnp.roll(encode(*arguments), 1, axis=1)


IN_THE_MODEL = {
    "positions shifted": (at("vision.positions", shifted), "patch embedding"),
    "patches mirrored": (at("vision.patches.kernel", lambda kernel: kernel.swapaxes(0, 1)), "patch embedding"),
    "query and key swapped": (at("vision.layers.qkv.kernel", swapped, 1), "vision layer 1"),
    "vision transposed": (at("vision.layers.proj.kernel", transposed, 0), "vision layer 0"),
    "epsilon of vision": (epsilon("vision.layers.norm1"), "vision layer 0, quiet"),
    "projector transposed": (at("projector.down.kernel", transposed), "projector"),
    "epsilon of the projector": (epsilon("projector.norm"), "projector, quiet"),
    "motion mirrored": (at("motion.stages.1.fast.1.b.kernel", mirrored), "motion stage 2 fast"),
    "motion projector transposed": (at("motion_projector.down.kernel", transposed), "motion token"),
    "epsilon of the motion projector": (epsilon("motion_projector.norm"), "motion token"),
    "words shifted": (at("language.embedding", shifted), "prompt embedding"),
    "decoder transposed": (at("language.layers.out.kernel", transposed, 1), "decoder layer 1"),
    "epsilon of a decoder layer": (epsilon("language.layers.input_norm"), "decoder layer 0"),
    "theta": (theta, "decoder layer 0"),
    "final norm shifted": (at("language.norm.scale", shifted), "final norm"),
    "epsilon of the final norm": (epsilon("language.norm"), "final norm, quiet"),
    "head shifted": (at("language.head.kernel", shifted), "logits"),
}
IN_THE_CODE: dict[str, tuple[Any, str, Callable[..., Any], str]] = {
    "a of the cubic": (vision, "_bicubic", half_cubic, "patch embedding"),
    "GELU by tanh": (vision, "gelu", tanh, "vision layer 0"),
    "GELU by tanh in a projector": (layers, "gelu", tanh, "projector"),
    "BatchNorm of motion in training mode": (motion.ConvNorm, "__call__", training_mode, "motion stage 0 fast"),
    "motion token first": (VLM, "encode", motion_first, "prompt embedding"),
}


def never() -> Task:
    raise AssertionError("the task is in the recording")


def check_named_first(source: Path, half: Path, output: Path, stage: str) -> None:
    lines: list[str] = []
    assert not crosscheck(source, Halves(against=half), never, output, lines.append)
    assert lines[-1].startswith(f"{stage} is the first of "), "\n".join(lines)
    assert json.loads((output / "crosscheck.json").read_text())["first_out"] == stage


@pytest.mark.parametrize("fault", IN_THE_MODEL)
def test_a_fault_in_the_model_is_named_first(
    suited: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    plant, stage = IN_THE_MODEL[fault]

    def with_fault(*arguments: Any, **options: Any) -> VLM:
        model = open_ours(*arguments, **options)
        plant(model)
        return model

    monkeypatch.setattr("convert.crosscheck.open_ours", with_fault)
    check_named_first(*suited, tmp_path, stage)


@pytest.fixture
def forgetful() -> Iterator[None]:
    """What was compiled before knows nothing of a fault in the code, and what is compiled with it must not stay."""
    compiled: list[Any] = [convert.stages._compiled, convert.stages._vision_layer]
    for each in compiled:
        each.clear_cache()
    yield
    for each in compiled:
        each.clear_cache()


@pytest.mark.parametrize("fault", IN_THE_CODE)
@pytest.mark.usefixtures("forgetful")
def test_a_fault_in_the_code_is_named_first(
    suited: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    where, name, wrong, stage = IN_THE_CODE[fault]
    monkeypatch.setattr(where, name, wrong)
    check_named_first(*suited, tmp_path, stage)


# The halves


def test_the_halves_meet_on_another_machine(command, source: Path, tmp_path: Path, monkeypatch, capsys):
    assert command(source, "--save", tmp_path / "half") == 0
    assert "bring it along with --against" in capsys.readouterr().out
    shutil.copytree(source, tmp_path / "copy")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert command(tmp_path / "copy", "--against", tmp_path / "half") == 0
    assert command(tmp_path / "copy") == 2
    assert "error: crosscheck needs PyTorch for the reference" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--against", "{empty}"], "empty: no recording ("),
        (["--save", "{half}"], "half: is not empty; name a new folder"),
        (["--save", "a", "--against", "b"], "--save makes what --against reads"),
        (["--weights", "disk", "--gradients"], "gradients take all weights into memory"),
        (["--reference", "remote-code"], "has no code of its own"),
        (["--image-size", "50"], "not a multiple of 28"),
        (["--frames", "0"], "give --frames from 1"),
        (["--output", "{half}/run.json"], "run.json: is a file; name a folder"),
        (["--checkpoint", "{native}"], "PyTorch cannot read a native checkpoint; give what `export` makes of it"),
    ],
)
def test_what_cannot_be_checked_is_said_in_a_line(command, source, half, tmp_path, capsys, arguments, found):
    (tmp_path / "empty").mkdir()
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / "vqathinker.json").touch()
    folders = {"empty": tmp_path / "empty", "native": tmp_path / "native", "half": half}
    assert command(source, *(each.format(**folders) for each in arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert found in line


def test_a_recording_of_another_checkpoint_is_refused(command, half: Path, tmp_path: Path, capsys):
    other = published(tmp_path / "other", tower="6B")
    assert command(other, "--against", half) == 2
    assert "was recorded with another checkpoint" in capsys.readouterr().err


def test_code_in_the_folder_runs_only_when_asked_for_by_name(command, tmp_path: Path):
    folder = published(tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    assert command(folder) == 0
    assert not (tmp_path / "sprung").exists()


# Recordings


def test_a_stage_that_only_one_side_has_is_out_of_tolerance(half: Path):
    recording = Recording.open(half)
    stages = {name: recording.read(name) for name in recording}
    assert first_out(list(compare_all(stages.items(), recording))) is None
    fewer = {name: array for name, array in stages.items() if name != "logits"}
    first = first_out(list(compare_all(fewer.items(), recording)))
    assert first
    assert (first.stage, first.note) == ("logits", "ours has no such stage")
    first = first_out(list(compare_all({**stages, "more": stages["logits"]}.items(), recording)))
    assert first
    assert (first.stage, first.note) == ("more", "the reference has no such stage")


def first_stage(folder: Path) -> np.ndarray:
    recording = Recording.open(folder)
    return recording.read(next(iter(recording)))


def test_a_recording_cut_off_is_none(half: Path, tmp_path: Path):
    shutil.copytree(half, tmp_path / "half")
    (tmp_path / "half" / "run.json").unlink()
    with pytest.raises(InputError, match="no recording"):
        Recording.open(tmp_path / "half")
    for name in ("input.npz", "00000.npy"):
        shutil.copytree(half, tmp_path / name)
        whole = (tmp_path / name / name).read_bytes()
        (tmp_path / name / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=name):
            first_stage(tmp_path / name)
