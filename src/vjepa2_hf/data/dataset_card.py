"""Dataset cards: the README.md beside shards, with which `load_dataset` streams the folder, here and on the Hub.

    write_dataset_card(folder, features, num_rows)

The YAML head names the files and their columns; it has no counts that become false when files are added. The same data
gives the same card. A README.md that a person wrote is left alone.
"""

import logging
import os
from pathlib import Path

from datasets import DatasetInfo, Features
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from .cameras import CAMERAS
from .files import write_aside, writing


logger = logging.getLogger(__name__)

CARD = "README.md"
MARK = "<!-- Written by vjepa2_hf"
SIZES = (
    "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B",
    "100B<n<1T", "n>1T",
)  # fmt: skip

# By a column that only this kind of data has, the last one by default: title, what a row is, the Hub's tasks, tags
_KINDS = {
    "embedding": (
        "Features of videos",
        "A row is a clip of a video with its `embedding`, computed by a video encoder.",
        ["feature-extraction"],
        ["video"],
    ),
    "episode_index": (
        "Robot episodes",
        "Episodes in the LeRobot v3 format. A row is a frame with its state and its action; the images are in\n"
        "`videos/`.",
        ["robotics"],
        ["video", "LeRobot"],
    ),
    "actions": (
        "Episodes",
        "A row is an episode: its `video` (mp4) of T frames and the T-1 `actions` between them. A world model of\n"
        "`vjepa2_hf` trains on it with `data=` and the name of this dataset.",
        ["robotics"],
        ["video", "world-model"],
    ),
    "video": (
        "Videos",
        "A row is a `video` (mp4). An encoder of `vjepa2_hf` trains on it with `data=` and the name of this dataset.",
        ["video-classification"],
        ["video"],
    ),
}
_BODY = """
{mark} and replaced when the data is complete again. To keep your changes, remove this line. -->

# {title}

{row}
```python
from datasets import load_dataset

rows = load_dataset("USER/NAME", split="train", streaming=True)  # this dataset on the Hub, or its folder
```

{video}## License

None is stated. Data that was converted keeps the license of its source: name it in the first lines of this file.
"""
_CAMERAS = "`cameras` names the cameras of a row. `video` is the first one; the others are {others}.\n\n"
_VIDEO = '`vjepa2_hf.video_io.read_video(row["video"])` decodes a video to frames.\n\n'


def write_dataset_card(
    folder: str | os.PathLike, features: Features, num_rows: int, files: str = "data-*.parquet"
) -> None:
    """Writes the README.md of a folder of parquet files, unless a person wrote the one that is there.

    Args:
        features: the columns.
        num_rows: in all files.
        files: pattern of their names. They form the split `train`.
    """
    path = Path(folder) / CARD
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        logger.info("%s was not generated: it stays as it is", path)
        return
    found = next((column for column in _KINDS if column in features), "video")
    title, row, tasks, tags = _KINDS[found]
    size = SIZES[min(max(len(str(num_rows)) - 3, 0), len(SIZES) - 1)]
    head = DatasetCardData(
        license="unknown", pretty_name=title, task_categories=tasks, size_categories=[size], tags=[*tags, "vjepa2_hf"]
    )
    configs = {"default": {"data_files": [{"split": "train", "path": files}]}}
    MetadataConfigs(configs).to_dataset_card_data(head)
    DatasetInfosDict({"default": DatasetInfo(features=features)}).to_dataset_card_data(head)
    video = _VIDEO if "video" in features else ""
    if CAMERAS in features:
        others = ", ".join(f"`{name}`" for name in features if name.startswith("video_"))
        video += _CAMERAS.format(others=others)
    text = f"---\n{head.to_yaml()}\n---\n" + _BODY.format(mark=MARK, title=title, row=row, video=video)
    with writing(path), write_aside(path, unique=True) as partial:  # jobs may end at the same time
        partial.write_text(text, encoding="utf-8")
