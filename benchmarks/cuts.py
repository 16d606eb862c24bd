"""Which cuts between shots are found, as a table in Markdown: ``python benchmarks/cuts.py [--data ../shared/data]``.

Eight real clips of different takes, the first 12 to 49 frames of each, make a video, so that its cuts are known. Ours are
those of ``python -m preprocess``. PySceneDetect's detectors stand beside them where it is installed (``pip install
scenedetect``), with shots of 5 frames at least: by default they hide shorter ones. What is found inside a clip counts as wrong,
also where the clip is cut there.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np

from preprocess.synthetic import encode
from preprocess.transcode import Options, transcode

SETS = {  # folders below the data, and how many letters of a file's name tell its take
    "UCF101": (("ucf101/videos",), -8),  # v_CLASS_gNN: clips of one group are pieces of one take
    "Kinetics, HMDB51, KTH, UTD-MHAD, surveillance": (
        ("wild/kinetics", "wild/hmdb51", "wild/kth_mp4", "wild/utd_mhad", "wild/surv_fight"), None,
    ),
    "Weizmann": (("weizmann/videos",), None),
}  # fmt: skip
SHOTS, VIDEOS = 8, 15  # of a video, and of a set


def some_frames(path: Path, frames: int) -> list[np.ndarray]:
    """The first frames of a clip in RGB, 320 x 240."""
    with av.open(str(path), metadata_errors="ignore") as container:
        decoded = itertools.islice(container.decode(video=0), frames)
        return [cv2.resize(frame.to_ndarray(format="rgb24"), (320, 240)) for frame in decoded]


def spliced(clips: Sequence[Path], folder: Path) -> Iterator[tuple[Path, set[int]]]:
    """Videos of these clips in a drawn order, no clip twice in one, and the frames at which they are cut."""
    rng = np.random.default_rng(0)
    for number in range(VIDEOS):
        chosen = rng.choice(len(clips), min(SHOTS, len(clips)), replace=False)
        shots = [some_frames(clips[at], int(rng.integers(12, 50))) for at in chosen]
        encode(np.concatenate(shots), 25, path := folder / f"{number}.mp4")
        yield path, set(np.cumsum([len(shot) for shot in shots])[:-1].tolist())


def ours(path: Path) -> set[int]:
    (sample,) = transcode(path, Options(cues=()))
    return set(sample.meta.cuts)


def peers() -> dict[str, Callable[[Path], set[int]]]:
    try:
        import scenedetect
    except ImportError:
        return {}

    def of(kind: Callable[..., scenedetect.SceneDetector]) -> Callable[[Path], set[int]]:
        def found(path: Path) -> set[int]:
            scenes = scenedetect.detect(str(path), kind(min_scene_len=5))
            return {scene[0].frame_num for scene in scenes[1:]}

        return found

    kinds = scenedetect.AdaptiveDetector, scenedetect.ContentDetector
    return {f"PySceneDetect {scenedetect.__version__}, {kind.__name__}": of(kind) for kind in kinds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data", help="real clips")
    data = parser.parse_args().data
    ways = {"ours": ours, **peers()}
    print("| clips | cuts | " + " | ".join(f"{way}: recall, precision" for way in ways) + " |")
    print("|---" * (len(ways) + 2) + "|")
    for name, (folders, letters) in SETS.items():
        files = sorted(path for one in folders for path in (data / one).rglob("*") if path.suffix in (".avi", ".mp4"))
        clips = list({path.name[:letters]: path for path in files}.values())
        if len(clips) < 2:
            print(f"| {name}: not at {data} |")
            continue
        with tempfile.TemporaryDirectory() as folder:
            videos = list(spliced(clips, Path(folder)))
            cells = []
            for way in ways.values():
                pairs = [(true, way(path)) for path, true in videos]
                hits = sum(len(true & found) for true, found in pairs)
                total, found_cuts = (sum(len(pair[at]) for pair in pairs) for at in (0, 1))
                cells.append(f"{hits / total:.2f}, {hits / max(found_cuts, 1):.2f}")
        print(f"| {name} | {total} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
