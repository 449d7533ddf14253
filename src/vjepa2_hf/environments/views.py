"""The cameras of tasks that a world model sees.

images = select_views(model.config, tasks.observe(active))          # or goals=True
frames = encode_frames(model, processor, images)
planner(split_views(images), ...)
"""

from typing import Any

import numpy as np


Images = np.ndarray | dict[str, np.ndarray]  # uint8 (n, H, W, 3), of several cameras by name


def select_views(config: Any, images: dict[str, np.ndarray]) -> Images:
    """Images of the cameras of a world model's config, of those that tasks show, by name ("": the only one has none).

    A model of one camera without a name takes the first one, and one of several cameras those that are there.

    Raises:
        ValueError: the tasks show none of its cameras.
    """
    known = config.view_names or list(images)[: config.num_views]
    names = [name for name in known if name in images]
    if config.num_views == 1 and (names or "" in images):
        return images[names[0] if names else ""]
    if not names:
        found = ", ".join(name or "one camera without a name" for name in images)
        raise ValueError(
            f"The world model sees {', '.join(known)}, but the tasks show {found}: set views={list(known)}."
        )
    return {name: images[name] for name in names}


def split_views(images: Images) -> list[np.ndarray | dict[str, np.ndarray]]:
    """One item per episode: an image (H, W, 3), or a dict of them by camera."""
    if not isinstance(images, dict):
        return list(images)
    return [dict(zip(images, views)) for views in zip(*images.values(), strict=True)]
