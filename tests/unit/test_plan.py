"""Plans: targets, the search for a batch, and the demonstration recipe compiled for this machine and a TPU slice."""

import importlib.util
import json
from pathlib import Path

import pytest

import run
from vqathinker_jax.hardware import CHIPS, parse_target
from vqathinker_jax.plan import bisect
from vqathinker_jax.records import InputError

RECIPE = str(Path(run.__file__).parent / "configs" / "tiny_cpu.py")


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


def test_a_topology_or_devices_but_not_both(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.argv", ["run.py", "plan", RECIPE])
    assert run.main() == 2
    assert "--topology" in capsys.readouterr().err


@pytest.mark.parametrize(
    "target",
    [
        "cpu:2",
        pytest.param(
            "v5e:1x2",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("libtpu") is None, reason="compiles for a TPU: pip install -e '.[plan]'"
            ),
        ),
    ],
)
def test_every_phase_of_the_demonstration_is_planned(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["run.py", "plan", RECIPE, "--topology", target, "--json"])
    assert run.main() == 0
    plan = json.loads(capsys.readouterr().out)
    rows = {row["phase"]: row for row in plan["rows"]}
    assert list(rows) == ["encode", "prefill", "decode", "log-probs", "update"]
    assert plan["fits"]
    for row in rows.values():
        assert 0 < row["peak"] <= row["capacity"]
        assert row["flops"] >= row["useful_flops"] > 0
        assert row["collectives"]
    # The update computes layers again that it did not keep; decoding has nothing to keep.
    assert rows["update"]["flops"] > rows["update"]["useful_flops"]
    assert rows["decode"]["flops"] == rows["decode"]["useful_flops"]
    # The weights' gradients are summed over devices.
    assert {"all-reduce", "reduce-scatter"} & rows["update"]["collectives"].keys()
