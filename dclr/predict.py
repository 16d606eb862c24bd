"""Name the classes of videos as they are, without shards: a line for each window of time, then the whole video's.

A window is as long as a clip. The whole video's probabilities are those that train_eval.py finetune gives for it from a set
like the one that the network was trained on.
"""

from __future__ import annotations

from dclr.errors import exit_on_input_error, path_flag
from dclr.settings import Parser, from_flags
from dclr.threads import settle


def parser() -> Parser:
    from dclr.evaluation.config import Prediction

    examples = {
        "what some videos show": "holiday.mp4 match.mov --pretrained runs/mine-finetuned",
        "for programs": "holiday.mp4 match.mov --pretrained runs/mine-finetuned --json found.jsonl",
        "where the network looks": "match.mov --pretrained runs/mine-finetuned --overlay match-seen.mp4",
    }
    made = Parser(prog="python -m dclr.predict", description=__doc__, examples=examples)
    made.add_argument("videos", nargs="+", type=path_flag, metavar="VIDEO", help="videos that FFmpeg reads (required)")
    return made.add(Prediction)


def main() -> None:
    settle()  # before numpy and torch are imported
    from dclr.evaluation.config import Prediction

    given = parser().given()
    config = from_flags(Prediction, given)
    from dclr.evaluation.videos import predict

    predict(given["videos"], config)


if __name__ == "__main__":
    with exit_on_input_error():
        main()
