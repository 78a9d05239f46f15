"""Near-duplicates in a project's pool: how many frames of its videos look alike, and leaving out those that do.

pool.json   how alike frames are, measured once for a pool: {"frames", "features", "typical", "near"}; near has, for
            some distances, the shares of frames with another of their video within it and the numbers that stay
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alges_fast import atomic
from alges_fast.cached_rows import content_digest
from alges_fast.models.features_cache import mean_features
from alges_fast.progress import Progress
from alges_fast.project.folder import Project
from alges_fast.project.network import Maps
from alges_fast.project.reading import read_facts
from alges_fast.selection.near_duplicates import nearest_in_video, representatives, typical_distance

POOL = "pool.json"
DISTANCES = (0.1, 0.2, 0.3)
"""Within which frames are said to be near, in typical distances between frames of different videos."""


def note_likeness(project: Project, maps: Maps, videos: Sequence[str], progress: Progress) -> None:
    """Write how alike the pool's frames are, where that is not known of these."""
    means = mean_features(maps.values, progress)
    digest = content_digest(means)
    if len(means) < 2 or _known(project).get("features") == digest:
        return
    progress("comparing frames", len(means), len(means))
    typical, nearest = typical_distance(means, videos), nearest_in_video(means, videos)
    near = {}
    for distance in DISTANCES:
        stay = representatives(means, videos, distance * typical)
        near[str(distance)] = [round(float((nearest <= distance * typical).mean()), 4), len(stay)]
    facts = {"frames": len(means), "features": digest, "typical": round(typical, 4), "near": near}
    atomic.write_json(project.root / POOL, facts)


def likeness_line(project: Project, n_frames: int) -> str:
    """How alike the pool's frames are, as a sentence."""
    known = _known(project)
    if not known:
        return "near-duplicates: how alike the frames are is measured when a round first looks at them"
    distances, shares, stay = zip(*((of, *values) for of, values in known["near"].items()), strict=True)
    pool = f"{known['frames']:,}" if known["frames"] == n_frames else f"the {known['frames']:,} that there were then"
    return (
        f"near-duplicates: {', '.join(f'{share:.0%}' for share in shares)} of the frames have another of their video "
        f"within {', '.join(distances)} of the typical distance between frames of different videos; next --thin with "
        f"these leaves {', '.join(f'{n:,}' for n in stay)} of {pool}"
    )


def stand_for_all(
    maps: Maps, videos: Sequence[str], radius: float, taken: Sequence[str], progress: Progress
) -> list[str]:
    """Ids of frames such that every frame has one of them within this of the typical distance, in its own video.

    Args:
        radius: in typical distances between frames of different videos.
        taken: frames that stand for what is near them before all others, being labelled or asked for already.
    """
    means, places = mean_features(maps.values, progress), {id: at for at, id in enumerate(maps.ids)}
    first = frozenset(places[id] for id in taken if id in places)
    stay = representatives(means, videos, radius * typical_distance(means, videos), first)
    return [maps.ids[at] for at in stay]


def _known(project: Project) -> dict[str, Any]:
    path = project.root / POOL
    return read_facts(path, {"frames": int, "features": str, "near": dict}) if path.exists() else {}
