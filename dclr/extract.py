"""Features of a frozen network in files for other software, a row a video, a clip or a position of the feature map.

Each file, features-00000.npz and so on, has the rows' columns side by side: key; of a clip or position clip and crop, and of a
position t, h, w in the feature map; start and end in seconds of the video; label_KIND (-1: none); split_NAME (bool); features,
float32 (rows, C'). An .npz has the classes' names as classes_KIND; in Parquet each row has its own as class_KIND, and a label
may be null.
"""

from __future__ import annotations

from dclr.data.workers import worker_context
from dclr.errors import exit_on_input_error
from dclr.files import run_folder
from dclr.settings import Parser, flags, from_flags
from dclr.threads import settle


def parser() -> Parser:
    from dclr.evaluation.config import Data, Extraction

    examples = {
        "a vector a video, and a picture of them": "shards/mine --pretrained runs/mine/last.pt --out runs/mine-features --plot",
        "each clip of a split, as Parquet": "shards/mine --split test01 --pretrained runs/mine/last.pt --per clip "
        "--format parquet --out runs/mine-clips",
        "the baseline": "shards/mine --pretrained random -a r2plus1d_10 --out runs/random-features",
    }
    made = Parser(prog="python -m dclr.extract", description=__doc__, examples=examples)
    made.add_argument("shards", metavar="SET", help=f"{flags(Data)['shards'].said.help} (required)")
    return made.add(Extraction)


def main() -> None:
    settle()  # before numpy and torch are imported
    from dclr.evaluation.config import Extraction

    given = parser().given()
    config = from_flags(Extraction, given, shards=given["shards"])
    if config.workers:
        worker_context()  # their server imports torch while this process does
    from dclr.distributed import shutdown
    from dclr.evaluation.rows import extract

    try:
        with run_folder(config.out, "extract.json"):
            extract(config)
    finally:
        shutdown()


if __name__ == "__main__":
    with exit_on_input_error():
        main()
