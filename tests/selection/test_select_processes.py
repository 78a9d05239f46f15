"""`select` by several processes that share the pool: the picks are those of one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import nn

from alges_fast import Window, select

N, SIZE, REGIONS = 17, (8, 9), (2, 3)
STRATEGIES = ("random", "stratified-random", "entropy", "coreset", "alges-img", "alges-img-released", "own")
STRATEGIES += ("power-entropy", "claspe", "alges-effort", "alges-class", "alges-half", "uherding", "typical", "bait")
OWN = """
from alges_fast.strategies import Strategy, by_score, candidate_images

class Even(Strategy):
    name = "even"
    reference = "-"
    needs_model = False

    def rate(self, query):  # many ties
        return by_score(query, {c: round(float(image.mean()), 1) for c, image in candidate_images(query)})
"""


def choose_all(folder: Path, group: dist.ProcessGroup | None) -> dict[str, Any]:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    pool = [(f"frame{i:02d}", torch.rand(3, *SIZE, generator=generator) * (1 + i % 3)) for i in range(N)]
    places = {name: (f"video{i // 6}", float(i % 6)) for i, (name, _) in enumerate(pool)}
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    found: dict[str, Any] = {}
    for name in STRATEGIES:
        strategy = f"{folder}/mine.py:Even" if name == "own" else name
        options = {"strategy": strategy, "seed": 3, "progress": False, "group": group, "places": places}
        apart = select(model, pool, 5, labelled=["frame01"], min_gap=2.0, out=folder / "scores" / name, **options)
        again = apart.reject(apart.ids[1:3])
        windows: list[str | Window] = ["frame02", Window("frame03", 3, 0, 3, 4)]
        regions = select(model, pool, pixels=7 * 12, regions=REGIONS, labelled=windows, min_gap=2.0, **options)
        found[name] = {
            "frames": select(model, pool, 6, **options).ids,
            "frames apart": apart.ids,
            "frames refused": again.ids,
            "frames' scores": {id: apart.scores[id] for id in apart.ids if apart.scores},
            "refused frames' scores": {id: again.scores[id] for id in again.ids if again.scores},
            "scores of others": 0 if group is None else len(set(again.scores) - set(again.ids)),
            "all frames": select(model, pool, N - 1, labelled=["frame01"], **options).ids,
            "frames considered": select(model, pool, 3, labelled=["frame01"], consider=6, min_gap=2.0, **options).ids,
            "windows": regions.ids,
            "windows refused": regions.reject([regions.ids[2]]).ids,
            "windows' scores": {w: regions.scores[w] for w in regions.ids if regions.scores},
        }
        few = select(model, pool[:1], 1, **options)  # of two processes one has no frame
        found[name]["one frame"] = few.ids
    return found


def work(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=90)
    )
    torch.save(choose_all(Path(folder), dist.group.WORLD), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "mine.py").write_text(OWN)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    return choose_all(folder, None)


@pytest.fixture(scope="module")
def together(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes got."""
    multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_pick_what_one_picks(
    strategy: str, alone: dict[str, Any], together: list[dict[str, Any]]
) -> None:
    for process in together:
        for what, expected in alone[strategy].items():
            if what.endswith("scores"):
                assert list(process[strategy][what]) == list(expected)
                assert process[strategy][what] == pytest.approx(expected, rel=1e-5)
            else:
                assert process[strategy][what] == expected, what
