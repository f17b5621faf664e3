"""Plans: targets, the search for a batch, and the demonstration recipe compiled for this machine and a TPU slice."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import run
from configs import tiny_cpu
from convert.load import open_config
from vqathinker_jax import compilers
from vqathinker_jax import plan as planning
from vqathinker_jax.budget import Plan, Row
from vqathinker_jax.hardware import CHIPS, GIB, parse_target
from vqathinker_jax.phases import Phase
from vqathinker_jax.plan import Effort, bisect
from vqathinker_jax.recipe import TrainConfig
from vqathinker_jax.records import InputError

ROOT = Path(run.__file__).parent
RECIPE = str(ROOT / "configs" / "tiny_cpu.py")
WAITING = """
from dataclasses import replace

from configs.tiny_cpu import config as tiny
from vqathinker_jax.recipe import ReferenceConfig

config = replace(tiny, reference=ReferenceConfig(memory="host"))
"""
"""The same, its reference policy in the hosts' memory."""


def test_targets_name_a_kind_and_a_shape():
    slice_, machine = parse_target("v5p:2x4x4"), parse_target("h200:8")
    assert (slice_.kind, slice_.count, slice_.topology) == ("v5p", 32, "2x4x4")
    assert (machine.count, machine.topology, str(machine)) == (8, "", "h200:8")
    assert slice_.chip is CHIPS["v5p"]


@pytest.mark.parametrize("text", ["v5p:4x4", "v5e:8", "h200:2x4", "v9:8x8", "v5e:0x8", "v5e", ""])
def test_other_targets_are_refused(text: str):
    with pytest.raises(InputError, match="topology"):
        parse_target(text)


@pytest.mark.parametrize("first", [1, 3, 4, 7])
@pytest.mark.parametrize("most", [0, 1, 2, 5, 7])
def test_the_largest_batch_is_found_from_either_side(first: int, most: int):
    assert bisect(lambda units: units <= most, first) == most


@pytest.mark.parametrize(("most", "largest"), [(9, 8), (4, 4), (1, 0)])
def test_the_search_asks_for_other_batches_of_the_recipe(most: int, largest: int, monkeypatch: pytest.MonkeyPatch):
    """The tiny recipe takes two videos a step in two parts, so batches are whole multiples of two."""

    def compiled(config: TrainConfig, **_: object) -> Plan:
        row = replace(FULL, peak=config.data.batch_size * GIB, capacity=most * GIB)
        return Plan("cpu:1", 1, {"data": 1, "fsdp": 1}, config.data.batch_size, False, [row], 1.0, 0.1)

    monkeypatch.setattr(planning, "_compiled", compiled)
    recipe = replace(tiny_cpu.config, micro_batches=2)
    model = open_config(Path(recipe.checkpoint))
    assert planning.make(recipe, model, parse_target("cpu:1"), Effort(search=True)).largest_batch == largest


def test_a_program_that_the_compiler_refuses_is_named_with_what_it_asks_for(monkeypatch: pytest.MonkeyPatch):
    """Where temporaries alone are too much, the compiler tells their sum and none of them."""

    class Refused:
        def compile(self, _options: object):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: total memory (20G) exceeds HBM (16G).")

        def as_text(self, dialect: str) -> str:
            assert dialect == "hlo"
            return "  dot.1 = f32[256,1024,1024]{2,1,0} dot(a.1, b.2), lhs_contracting_dims={1}"

    count = (lambda x: x, (jax.ShapeDtypeStruct((2,), np.float32),))
    update = Phase("update", Refused, count, times=1, resident=0)
    monkeypatch.setattr(planning, "phases", lambda *_: iter([update]))
    model = open_config(Path(tiny_cpu.config.checkpoint))
    found = planning.make(tiny_cpu.config, model, parse_target("cpu:1"), Effort())
    assert not found.fits
    assert found.refused.startswith("update: RESOURCE_EXHAUSTED: total memory (20G) exceeds HBM (16G).")
    assert found.refused.endswith("in GiB: f32[256,1024,1024] 1.00")


def test_supervised_training_is_not_planned():
    recipe = replace(tiny_cpu.config, stage="sft")
    with pytest.raises(InputError, match="stage is sft: plans are made of GRPO steps only"):
        planning.plan(recipe, open_config(Path(recipe.checkpoint)), parse_target("cpu:1"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("config = nonsense", ", line 1: NameError"),
        ("x = 1\nconfig = TrainConfig(", "SyntaxError"),
        ("x = 1", "defines no"),
    ],
)
def test_a_recipe_with_a_slip_is_told_in_a_line(text: str, fault: str, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "recipe.py").write_text(text)
    monkeypatch.setattr("sys.argv", ["run.py", "plan", str(tmp_path / "recipe.py"), "--topology", "cpu:1"])
    assert run.main() == 2
    said = capsys.readouterr().err
    assert fault in said
    assert len(said.splitlines()) == 1


def test_a_topology_or_devices_but_not_both(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.argv", ["run.py", "plan", RECIPE])
    assert run.main() == 2
    assert "--topology" in capsys.readouterr().err


@pytest.fixture
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler that a target needs, as `make .venv/libtpu` and `make .venv/cuda` put it apart."""
    place = {"v": ".venv/libtpu", "h": ".venv/cuda"}.get(request.getfixturevalue("target")[0])
    if place is None:
        return
    if (ROOT / place).is_dir():
        monkeypatch.syspath_prepend(ROOT / place)
        monkeypatch.setenv("PYTHONPATH", str(ROOT / place), prepend=os.pathsep)
    elif "CI" in os.environ:
        pytest.fail(f"{place} is not there: make {place}")
    else:
        pytest.skip(f"compiles for hardware that is not here: make {place}")


KERNEL = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from vqathinker_jax.compilers import devices
from vqathinker_jax.hardware import parse_target
from vqathinker_jax.model.cached_attention import Bytes, attend_two
from vqathinker_jax.sharding import MeshConfig, layout_of, make_mesh

device, = devices(parse_target(sys.argv[1]))
layout = layout_of(make_mesh(MeshConfig(), [device]))

def array(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

key, own = array(2, 4, 2048, 128), array(2, 4, 3, 1024, 128)
narrow = Bytes(array(2, 4, 2048, 128, dtype=jnp.int8), array(2, 4, 1, 128, dtype=jnp.float32))
masks = array(2, 2048, dtype=bool), array(2, 3, 1024, dtype=bool)
for kept in (key, narrow):
    inputs = array(2, 3, 28, 128), (kept, kept, masks[0]), (own, own, masks[1])
    text = jax.jit(lambda *inputs: attend_two(*inputs, layout)).lower(*inputs).compile().as_text()
    print(layout.attention, text.count(sys.argv[2]))
"""


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("target", "call", "attention"),
    [
        ("h200:1", "__gpu$xla.gpu.triton", "cudnn"),
        ("v5p:1x1x1", "tpu_custom_call", "splash"),
        ("v5e:1x1", "tpu_custom_call", "splash"),
    ],
)
def test_the_kernel_of_decoding_compiles_for_real_chips(target: str, call: str, attention: str):
    """Twice in a program: for the prompts, as numbers or in bytes, and for the completions' own."""
    environment = os.environ | compilers.environment(parse_target(target))
    asked = [sys.executable, "-c", KERNEL, target, f'custom_call_target="{call}']
    made = subprocess.run(asked, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    assert made.stdout.split() == [attention, "2"] * 2


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("target", ["cpu:2", "v5e:1x2", "h200:2"])
def test_every_phase_of_the_demonstration_is_planned(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # cuDNN's attention would ask for cuDNN, gigabytes more.
    changed = "tiny, attention='blocks', " if target.startswith("h") else "tiny, "
    (tmp_path / "recipe.py").write_text(WAITING.replace("tiny, ", changed))
    recipe = str(tmp_path / "recipe.py")
    monkeypatch.setattr("sys.argv", ["run.py", "plan", recipe, "--topology", target, "--quick", "--json"])
    assert run.main() == 0
    plan = json.loads(capsys.readouterr().out)
    rows = {row["phase"]: row for row in plan["rows"]}
    assert list(rows) == ["encode", "prefill", "decode", "log-probs", "update"]
    assert plan["fits"]
    assert not plan["estimate"]
    assert plan["attention"] == ("splash" if target.startswith("v") else "blocks")
    for row in rows.values():
        assert 0 < row["peak"] <= row["capacity"]
        assert row["flops"] >= row["useful_flops"] > 0
        assert row["collectives"]
    # The update computes layers again that it did not keep; decoding has nothing to keep.
    assert rows["update"]["flops"] > rows["update"]["useful_flops"]
    assert rows["decode"]["flops"] == rows["decode"]["useful_flops"]
    # The weights' gradients are summed over devices.
    assert {"all-reduce", "reduce-scatter"} & rows["update"]["collectives"].keys()


FULL = Row(
    phase="update",
    times=1,
    argument=9 * GIB,
    temporary=8 * GIB,
    resident=0,
    peak=17 * GIB,
    capacity=16 * GIB,
    flops=1e12,
    useful_flops=1e12,
    bytes=10**9,
    collectives={},
    compute=1.0,
    memory=0.5,
    network=0.0,
    largest=[(2 * GIB, "f32[896,151674]"), (GIB, "bf16[24,896,4864]")],
)


def test_what_does_not_fit_is_named_with_its_largest_arrays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = Plan("v5e:1x1", 1, {"data": 1}, 8, estimate=False, rows=[FULL], step_seconds=1.0, mfu=0.1)
    monkeypatch.setattr("vqathinker_jax.plan.plan", lambda *_: found)
    monkeypatch.setattr("sys.argv", ["run.py", "plan", RECIPE, "--topology", "v5e:1x1", "--model", "1B"])
    assert run.main() == 1
    said = "update does not fit: 17.00 of 16.00 GiB; largest: f32[896,151674] 2.00, bf16[24,896,4864] 1.00"
    assert said in capsys.readouterr().out
    monkeypatch.setattr("vqathinker_jax.plan.plan", lambda *_: replace(found, rows=[replace(FULL, peak=GIB)]))
    assert run.main() == 0
    assert "does not fit" not in capsys.readouterr().out
