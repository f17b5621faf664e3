"""Make the judge of the learning experiment the bundled one: `python -m tools.make_demo --help`.

Enters: the folder that `tools.learn` worked in. Leaves, under the folder of assets: `checkpoint/`, the model in the
chat format with its card; `clips/`, one scene that training did not see, without damage and with it; and
`expected.json` with the verdicts on both.
"""

import json
import shutil
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import jax
import tyro

import vqathinker
from convert.export import export_checkpoint
from vqathinker_jax.data import encoder
from vqathinker_jax.data.distortions import Distortion
from vqathinker_jax.data.synthetic import FINAL_CRF, SyntheticConfig, render

CLIPS = {"pristine.mp4": (), "damaged.mp4": (Distortion("blur", 0.75), Distortion("shuffle", 0.8))}
"""The bundled clips and what is wrong with them; their true MOS is 5 and 1.6."""
SCENE = "out_of_domain", 1_000_000
FRAMES = 24
SPLITS = ("in_domain", "out_of_domain")


@dataclass(frozen=True)
class Options:
    """What to make it of."""

    work: Path = Path("runs/learn")
    """Folder of `tools.learn`."""
    seed: int = 0
    """The run to take."""
    assets: Path = Path(__file__).parents[1] / "vqathinker_jax" / "assets"
    """Folder to write to."""


def main(options: Options) -> None:
    """Write the assets."""
    run = options.work / f"seed{options.seed}"
    target = options.assets / "checkpoint"
    if target.exists():
        shutil.rmtree(target)
    export_checkpoint(run / "grpo" / "model", target, "chat")
    (target / "README.md").write_text(_card(run), encoding="utf-8")
    judge = vqathinker.load(target)
    write_clips(options.assets / "clips", judge.view.image_size)
    verdicts = {name: judge.score(options.assets / "clips" / name) for name in CLIPS}
    recorded = {
        name: {"score": verdict.score, "expected": verdict.expected, "text": verdict.text}
        for name, verdict in verdicts.items()
    }
    _write_json(options.assets / "expected.json", {"jax": jax.__version__, "clips": recorded})
    print(json.dumps(recorded, indent=1))


def write_clips(folder: Path, size: int) -> None:
    """Write the bundled clips, `size` pixels a side."""
    for name, damages in CLIPS.items():
        frames_FYXC, _ = render(SyntheticConfig(size=size, frames=FRAMES - 1), *SCENE, damages)
        encoder.write(folder / name, frames_FYXC, FINAL_CRF)


def _card(run: Path) -> str:
    """The model's card, with the figures that the experiment measured."""
    before, after = (
        json.loads((run / stage / "measured.json").read_text(encoding="utf-8")) for stage in ("warm_start", "grpo")
    )

    def figure(found: dict[str, Any]) -> str:
        value, low, high = found["srcc"]
        return f"{value:.2f} ({low:.2f} to {high:.2f})"

    return CARD.format(
        **{f"{split}_before": figure(before[split]) for split in SPLITS},
        **{f"{split}_after": figure(after[split]) for split in SPLITS},
        **{f"{split}_expected": figure(after[split]["expected"]) for split in SPLITS},
        form=after["in_domain"]["format_rate"],
        pairs=after["temporal"]["above"],
        same=after["temporal"]["same"],
        pairs_expected=after["temporal"]["expected_above"],
        today=date.today().isoformat(),
    )


CARD = """# Demonstration model

A VQAThinker checkpoint in the chat format, small enough to travel with the code: 1.4 million weights, a SlowFast made
by hand that measures change. **It is a demonstration** of the whole chain, and no substitute for the 8B model: it has
seen nothing but synthetic videos, and what it says of real ones means little. It sees 6 frames of 112 pixels, which its
config says under `view`, and answers any question as if it were asked for a rating.

Trained from nothing on a CPU, by the stages of `make learn`, on 4000 procedural videos of 112 pixels with known
damage: it learned to see, then to speak in the asked form with ratings that know nothing of the video, then by GRPO
from the ratings of the videos alone (`benchmarks/learning`). `python -m tools.make_demo` put it here.

Rank correlation with the ratings, on 200 videos each that training did not see, with 95 % intervals:

| | before GRPO | this model | this model's expected ratings |
|---|---|---|---|
| unseen scenes | {in_domain_before} | {in_domain_after} | {in_domain_expected} |
| unseen scenes and damages | {out_of_domain_before} | {out_of_domain_after} | {out_of_domain_expected} |

Of the answers, {form:.0%} have the asked form. A video is rated above its copy with shuffled frames in {pairs:.0%} of
the pairs, and the same in {same:.0%}; more is expected of it in {pairs_expected:.0%}. Measured by the same, {today}.
"""


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
