"""The ten sets that VQAThinker's paper reports, under the names of their metas, with its figures.

Source: Table 1 of arXiv 2508.06051, as later papers quote it; its PLCC is the raw correlation, by the released code.
"""

from dataclasses import dataclass
from pathlib import Path

from vqathinker_jax.data.labels import Item, VideoSet, read_sets
from vqathinker_jax.records import InputError


@dataclass(frozen=True)
class Published:
    """One set as published. meta: its file, without `.json`. domain: "in-domain" sets are like the training set."""

    name: str
    meta: str
    videos: int
    srcc: float
    plcc: float
    domain: str


IN, OUT = "in-domain", "out-of-domain"
PAPER = (
    Published("LSVQ-test", "LSVQ_whole_test_ds_score", 7182, 0.883, 0.880, IN),
    Published("LSVQ-1080p", "LSVQ_whole_test_1080p_ds_score", 3573, 0.798, 0.834, IN),
    Published("KoNViD-1k", "Konvid-1k_total_ds_score", 1200, 0.881, 0.884, IN),
    Published("LIVE-VQC", "LIVE-VQC_total_ds_score", 585, 0.808, 0.847, IN),
    Published("YouTube-UGC", "youtube_ugc_total", 1020, 0.860, 0.863, IN),
    Published("LIVE-YT-Gaming", "LIVE-YT-Gaming_total_score", 600, 0.767, 0.806, OUT),
    Published("CGVDS", "CGVDS_total_score", 357, 0.856, 0.845, OUT),
    Published("LIVE-YT-HFR", "live_hfr_total_score", 480, 0.528, 0.610, OUT),
    Published("Waterloo-IVC-4K", "Waterloo_IVC_4K_total_score", 1200, 0.573, 0.624, OUT),
    Published("VDPVE", "VDPVE_train_score", 839, 0.706, 0.716, OUT),
)


def published(name: str) -> Published | None:
    """What is published of a set, by its name or its meta's; None for others."""
    return next((known for known in PAPER if name.casefold() in {known.name.casefold(), known.meta.casefold()}), None)


def read_paper(meta: Path, folder: Path | None) -> tuple[VideoSet, ...]:
    """The paper's sets in `meta`, under its names: a folder of their metas, or any list that `read_sets` takes.

    Of a folder's metas each has its videos below `folder`, in a folder called like the set (by default beside them).

    Raises: InputError for a set that the paper does not have, or a folder with none of its metas.
    """
    if not meta.is_dir():
        sets = read_sets(meta, folder)
        strange = [found.name for found in sets if published(found.name) is None]
        if strange:
            known = ", ".join(known.name for known in PAPER)
            raise InputError(f"{meta}: {', '.join(strange)} not in the paper: name sets as it does ({known})")
        return tuple(_renamed(found.name, found.items) for found in sets)
    metas = {known.name: meta / f"{known.meta}.json" for known in PAPER if (meta / f"{known.meta}.json").is_file()}
    if not metas:
        raise InputError(f"{meta}: holds none of the paper's metas, such as {PAPER[0].meta}.json: check the folder")
    root = folder or meta
    return tuple(_renamed(name, read_sets(path, root / name)[0].items) for name, path in metas.items())


def _renamed(name: str, items: tuple[Item, ...]) -> VideoSet:
    known = published(name)
    return VideoSet(known.name if known else name, items)
