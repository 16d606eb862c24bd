"""The data sets that ``python -m preprocess`` reads, a file each. docs/extending.md adds another."""

from preprocess.datasets import csv, diving48, folder, hmdb51, kinetics, ssv2, ucf101, wds
from preprocess.datasets.base import EMPTY_CLASS, OTHER_TAKEN, UNLISTED, DataSet, Video, VideoSet, sample_keys, video_set

__all__ = ["DATASETS", "EMPTY_CLASS", "OTHER_TAKEN", "UNLISTED", "DataSet", "Video", "VideoSet", "sample_keys", "video_set"]

DATASETS = {
    dataset.name: dataset
    for dataset in (
        ucf101.UCF101,
        hmdb51.HMDB51,
        kinetics.KINETICS,
        diving48.DIVING48,
        ssv2.SSV2,
        folder.FOLDER,
        csv.CSV,
        wds.WDS,
    )
}
