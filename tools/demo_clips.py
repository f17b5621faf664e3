"""Procedural clips with known damage, for the demonstration model: a seed and damages in, a video file out.

A scene is a drifting texture with sharp-edged, striped discs moving over it, so that blur, noise, blocks, exposure and
frozen motion each show. A damage is a kind with an amount from 0 (just visible) to 1 (severe).
"""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from scipy.ndimage import gaussian_filter

WIDTH, HEIGHT, FRAMES, RATE = 320, 240, 48, 24
WAVES, DISCS = 24, 6
PRISTINE_CRF = 18

LOOKS = {
    "blur": "blurred",
    "noise": "noisy",
    "blocks": "blocky",
    "dark": "too dark",
    "bright": "too bright",
    "freeze": "jerky",
}
"""Every kind of damage, and the word for what it looks like."""


@dataclass(frozen=True)
class Damage:
    """A kind of `LOOKS` and its amount in [0, 1]."""

    kind: str
    amount: float

    @property
    def strength(self) -> str:
        """The amount as an adverb."""
        return ("slightly", "clearly", "severely")[min(int(3 * self.amount), 2)]


def rating(damages: tuple[Damage, ...]) -> float:
    """The rating that goes with these damages: 4.80 without any, down to 1."""
    left = np.prod([0.85 - 0.75 * damage.amount for damage in damages])
    return float(1 + 3.8 * left)


def draw_damages(rng: np.random.Generator) -> tuple[Damage, ...]:
    """None (a fifth of the draws), one or two damages, the strongest first; never too dark and too bright at once."""
    count = rng.choice(3, p=[0.2, 0.5, 0.3])
    kinds = rng.choice([kind for kind in LOOKS if kind != "bright"], count, replace=False)
    if rng.random() < 0.5:
        kinds = ["bright" if kind == "dark" else kind for kind in kinds]
    damages = [Damage(str(kind), float(rng.random())) for kind in kinds]
    return tuple(sorted(damages, key=lambda damage: -damage.amount))


def write_clip(path: Path, seed: int, damages: tuple[Damage, ...]) -> Path:
    """Write the scene `seed` with these damages as H.264, 2 seconds of 320 x 240 at 24 frames a second."""
    rng = np.random.default_rng(seed)
    frames_FYXC = render(rng)
    crf = PRISTINE_CRF
    for damage in sorted(damages, key=lambda damage: list(LOOKS).index(damage.kind)):
        if damage.kind == "blocks":
            crf = round(32 + 19 * damage.amount)
        else:
            frames_FYXC = spoil(frames_FYXC, damage, rng)
    _encode(path, (frames_FYXC.clip(0, 1) * 255).round().astype(np.uint8), crf)
    return path


def render(rng: np.random.Generator) -> np.ndarray:
    """A scene as float32 RGB frames [F, Y, X, C], mostly within [0, 1]."""
    length_W = np.geomspace(3, 160, WAVES)
    turn_W = 2 * np.pi / length_W * np.exp(1j * rng.uniform(0, 2 * np.pi, WAVES))
    phase_W = rng.uniform(0, 2 * np.pi, WAVES)
    colour_WC = rng.normal(1, 0.3, (WAVES, 3)) * (length_W ** rng.uniform(0.2, 0.6))[:, None]
    colour_WC *= 0.13 / np.sqrt((colour_WC**2).sum(0) / 2)
    base_C, drift_2 = rng.uniform(0.4, 0.55, 3), rng.normal(0, 2, 2)
    discs = [_Disc(rng) for _ in range(DISCS)]

    # A sum of plane waves is a matrix product: exp(i(ay + bx)) = exp(iay) exp(ibx).
    rows_YW = np.exp(1j * np.outer(np.arange(HEIGHT), turn_W.imag)).astype(np.complex64)
    columns_WX = np.exp(1j * np.outer(turn_W.real, np.arange(WIDTH))).astype(np.complex64)
    frames_FYXC = np.empty((FRAMES, HEIGHT, WIDTH, 3), np.float32)
    for number, frame_YXC in enumerate(frames_FYXC):
        phased_W = np.exp(1j * (phase_W - number * (turn_W.imag * drift_2[0] + turn_W.real * drift_2[1])))
        waves_CYX = (rows_YW * (colour_WC.T * phased_W)[:, None].astype(np.complex64)) @ columns_WX
        frame_YXC[:] = base_C + waves_CYX.real.transpose(1, 2, 0)
        for disc in discs:
            disc.paint(frame_YXC, number)
    return frames_FYXC


class _Disc:
    """A striped disc on a straight path that leaves the picture on one side and comes back on the other."""

    def __init__(self, rng: np.random.Generator):
        self.centre = rng.uniform((0, 0), (HEIGHT, WIDTH))
        self.velocity = rng.normal(0, 3, 2)
        self.radius = rng.uniform(12, 48)
        self.colours = rng.uniform(0.1, 0.9, (2, 3))
        self.stripe = rng.uniform(4, 16) * np.exp(1j * rng.uniform(0, 2 * np.pi))

    def paint(self, frame_YXC: np.ndarray, number: int) -> None:
        """Paint the disc over a frame where it stands in frame `number`, its edges one pixel soft."""
        border = self.radius
        room = np.array([HEIGHT, WIDTH]) + 2 * border
        y, x = (self.centre + number * self.velocity + border) % room - border
        top, left = (max(int(at - self.radius - 1), 0) for at in (y, x))
        part_YXC = frame_YXC[top : max(int(y + self.radius + 2), 0), left : max(int(x + self.radius + 2), 0)]
        dy, dx = (np.mgrid[: part_YXC.shape[0], : part_YXC.shape[1]].T + np.array([top - y, left - x])).T
        across = (dx * self.stripe.real + dy * self.stripe.imag) / abs(self.stripe) ** 2
        stripes_YX1 = np.clip(0.5 + np.sin(np.pi * across) * abs(self.stripe) / np.pi, 0, 1)[..., None]
        inside_YX1 = np.clip(self.radius - np.hypot(dy, dx) + 0.5, 0, 1)[..., None]
        colour_YXC = self.colours[0] * stripes_YX1 + self.colours[1] * (1 - stripes_YX1)
        part_YXC += inside_YX1 * (colour_YXC - part_YXC)


def spoil(frames_FYXC: np.ndarray, damage: Damage, rng: np.random.Generator) -> np.ndarray:
    """The frames with one damage; "blocks" is the encoder's."""
    amount = damage.amount
    if damage.kind == "blur":
        sigma = 0.8 + 3.2 * amount
        return gaussian_filter(frames_FYXC, (0, sigma, sigma, 0))
    if damage.kind == "noise":
        grain = rng.standard_normal(frames_FYXC.shape, dtype=np.float32)
        return frames_FYXC + (0.03 + 0.15 * amount) * grain
    if damage.kind == "freeze":
        held = round(8 + 16 * amount)
        return frames_FYXC[np.arange(len(frames_FYXC)) // held * held]
    stops = 0.6 + 1.4 * amount
    return frames_FYXC * 2 ** (-stops if damage.kind == "dark" else stops / 2)


def _encode(path: Path, frames_FYXC: np.ndarray, crf: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width = frames_FYXC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame_YXC in frames_FYXC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_YXC)))
        container.mux(stream.encode(None))
