"""The experiment loop: Algorithm 1 of ALGES for every strategy and seed, resumable at every step.

For each strategy and seed, in round r: train from scratch on the labelled frames, evaluate on the test split, and (but
for the last round) ask the strategy which frames of the pool to label next. The initial pool depends on the seed alone
and a round's weights and shuffling on (seed, round) alone: strategies are compared in pairs, and none disturbs another.

With several processes (torchrun) the first one trains and sends the weights to the others: the labelled set is small,
and so a run's numbers do not depend on how many processes took part. Testing and scoring the pool, which are large, are
shared.

Several runs of one command in one folder share its work by strategy and seed: each takes one that nobody is at, under
a lock that ends with the process that holds it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import yaml
from lightning_fabric import Fabric
from torch import Tensor, nn

import alges_fast
from alges_fast import atomic
from alges_fast.command import begun_with, check_unchanged, plain
from alges_fast.data import Dataset, FrameSet, load_dataset, to_input
from alges_fast.errors import UserError
from alges_fast.experiment.config import RunConfig
from alges_fast.experiment.state import STEPS, RoundFolder
from alges_fast.experiment.training import MEMORY_FORMAT, evaluate, predict, train
from alges_fast.last_layer import LastLayer
from alges_fast.models import build_model, check_image_size
from alges_fast.random_streams import stream_seed
from alges_fast.report import artefacts, write_report
from alges_fast.strategies import Query, Strategy, Taken, get_strategy

T = TypeVar("T")

COLUMNS = (
    "strategy",
    "seed",
    "round",
    "n_labelled",
    "dice",
    "dice_image",
    "dice_released",
    "iou",
    "train_seconds",
    "embed_seconds",
    "seeding_seconds",
    "eval_seconds",
)
"""First columns of results.csv; a column dice_<class> per class follows."""

FREE_FIELDS = frozenset({"preset", "out", "keep_models"})
"""Fields of RunConfig that may differ when a run is resumed: no result depends on them."""

FORWARD_COST = 1 / 3
"""Work of a forward pass over an image in units of a training step's; only the time left is estimated from it."""

N_REPORT_FRAMES = 4

LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""Parts of what the back ends of torch.distributed say when a process is gone."""

LOCK = ".lock"
"""Held under OUT while files there are written, and under OUT/<strategy>/seed<k> while its rounds are run."""

PATIENCE = timedelta(days=7)
"""How long a process waits for the first one to train. One that dies is noticed at once, by its closed connections."""


class Monitor:
    """What a run tells while it goes; this one keeps it to itself."""

    def start(self, work: float) -> None:
        """The run begins; `work` in training images."""

    def advance(self, work: float) -> None:
        """So much of it is done."""

    def doing(self, what: str) -> None:
        """What is being done now."""

    def note(self, line: str) -> None:
        """A line worth keeping."""

    def loading(self, done: int, total: int) -> None:
        """Frames decoded or drawn, of all."""


class FramePool(Sequence[tuple[str, Tensor]]):
    """Frames of a set as (id, image (3, S, S) float32) pairs, normalised when indexed, on the device of `images`.

    Args:
        frames: the set.
        positions: which of its frames, in which order.
        images: the set's images, (N, 3, S, S) uint8, wherever they are.

    Attributes:
        ids: the frames' ids, in order.
    """

    def __init__(self, frames: FrameSet, positions: Sequence[int], images: Tensor | npt.NDArray[np.uint8]) -> None:
        self.images = images
        self.positions = positions
        self.ids = tuple(frames.ids[position] for position in positions)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        return self.ids[index], to_input(self.images[self.positions[index]])


@dataclass(frozen=True)
class _Run:
    """What all rounds of an experiment share."""

    config: RunConfig
    strategies: Sequence[Strategy]
    dataset: Dataset
    fabric: Fabric
    group: dist.ProcessGroup | None
    monitor: Monitor
    pool_images: Tensor | npt.NDArray[np.uint8]
    rows: dict[tuple[str, int, int], dict[str, Any]]

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    @property
    def leads(self) -> bool:
        """Whether this process trains and writes."""
        return self.group is None or dist.get_rank(self.group) == 0


def run_experiment(config: RunConfig, monitor: Monitor | None = None) -> list[dict[str, Any]]:
    """Run an experiment, or what is left of it, under config.out, and write its report.

    Returns:
        The rows of results.csv, sorted by strategy (as configured), seed and round.

    Raises:
        UserError: a mistake in the configuration or the data, or files that cannot be written or read.
    """
    monitor = monitor or Monitor()
    strategies = [get_strategy(name)() for name in config.strategies]
    names = [strategy.name for strategy in strategies]
    if len(set(names)) < len(names):
        raise UserError(f"--strategies gives two strategies of one name: {', '.join(names)}")
    fabric, group = _launch(config)
    out = Path(config.out)
    check_unchanged(out / "config.yaml", plain(config), FREE_FIELDS)
    dataset = load_dataset(
        config.dataset,
        root=config.data_root,
        image_size=config.image_size,
        split=config.split,
        ignore_index=config.ignore_index,
        on_bad_image=config.on_bad_image,
        progress=monitor.loading,
    )
    _check_budget(config, strategies, len(dataset.train))
    check_image_size(_build(config, dataset, strategies[0], 0, 0), config.image_size)
    run = _Run(config, strategies, dataset, fabric, group, monitor, _near(fabric, dataset.train.images), {})
    if run.leads:
        with atomic.locked(out / LOCK):
            _prepare_folder(run)
    for note in dataset.notes:
        monitor.note(note)
    monitor.start(sum(_work(run, strategy) for strategy in strategies) * len(config.seeds))
    _run_pairs(run, [(seed, strategy) for seed in config.seeds for strategy in strategies])
    rows = _write_results(run)
    if run.leads:
        monitor.doing("writing the report")
        with atomic.locked(out / LOCK):
            _save_thumbnails(run)
            write_report(out)
    return rows


def initial_pool(n_frames: int, init_size: int, seed: int) -> list[int]:
    """Positions of the frames that are labelled at the start: a uniform draw that depends on the seed alone."""
    generator = np.random.default_rng(stream_seed("initial pool", seed))
    return [int(position) for position in generator.permutation(n_frames)[:init_size]]


def _run_pairs(run: _Run, pairs: Sequence[tuple[int, Strategy]]) -> None:
    """First the pairs that no other process is at; then the others, in case their process has died."""
    others: list[tuple[int, Strategy]] = []
    for wait in (False, True):
        for seed, strategy in others if wait else pairs:
            if wait:
                run.monitor.doing(f"waiting for another process: {strategy.name}, seed {seed}")
            with _claimed(run, strategy, seed, wait) as mine:
                if mine:
                    _run_strategy(run, strategy, seed)
                else:
                    others.append((seed, strategy))


@contextlib.contextmanager
def _claimed(run: _Run, strategy: Strategy, seed: int, wait: bool) -> Iterator[bool]:
    lock = atomic.locked(RoundFolder.of(run.out, strategy.name, seed, 0).path.parent / LOCK, wait=wait)
    with contextlib.ExitStack() as stack:
        yield _from_leader(run, lambda: stack.enter_context(lock))


def _run_strategy(run: _Run, strategy: Strategy, seed: int) -> None:
    config, pool = run.config, run.dataset.train
    n_rounds = _rounds(config, strategy)
    labelled = list(range(len(pool))) if strategy.takes_whole_pool else initial_pool(len(pool), config.init_size, seed)
    for round in range(n_rounds):
        folder = RoundFolder.of(run.out, strategy.name, seed, round)
        last = round + 1 == n_rounds
        done = _from_leader(run, folder.n_finished)
        if done == len(STEPS):
            run.monitor.advance(_round_work(run, len(labelled), last))
        else:
            _run_round(run, strategy, seed, round, labelled, folder, last, done)
        if not last:
            picked = _from_leader(run, folder.picked)
            if not (set(pool.ids).issuperset(picked) and set(labelled).isdisjoint(map(pool.index, picked))):
                raise folder.damaged("picks.json")
            labelled += map(pool.index, picked)


def _run_round(
    run: _Run,
    strategy: Strategy,
    seed: int,
    round: int,
    labelled: list[int],
    folder: RoundFolder,
    last: bool,
    done: int,
) -> None:
    """The steps of a round after the first `done` of them."""
    config, dataset, monitor = run.config, run.dataset, run.monitor
    where = f"{strategy.name}, seed {seed}, round {round + 1} of {_rounds(config, strategy)}"
    model = _build(config, dataset, strategy, seed, round)
    model.to(run.fabric.device, memory_format=MEMORY_FORMAT).eval()  # type: ignore[call-overload]

    if done > STEPS.index("train"):
        if run.leads:
            folder.load_model(model)
        monitor.advance(config.epochs * len(labelled))
    else:
        monitor.doing(f"{where}: training on {len(labelled)}")
        if run.leads:
            _train(run, strategy, model, seed, round, labelled, folder)
    _share_weights(run, model)

    if done > STEPS.index("evaluate"):
        monitor.advance(FORWARD_COST * len(dataset.test))
    else:
        monitor.doing(f"{where}: testing")
        _evaluate(run, strategy, model, seed, round, len(labelled), folder, last)

    if last:
        picks = None
    else:
        monitor.doing(f"{where}: choosing {config.query_size}")
        picks = _query(run, strategy, model, seed, round, labelled)
        monitor.advance(FORWARD_COST * len(dataset.train))
    if run.leads:
        if picks is not None:
            folder.save_picks(picks)
        if not config.keep_models:
            folder.remove_model()  # before the last step is recorded, after which nobody would
        folder.finish("query")
        _write_results(run)
        row = run.rows[strategy.name, seed, round]
        cost = f"trained in {row['train_seconds']:.1f} s"
        if picks is not None:
            cost += f", chose {len(picks['ids'])} in {row['embed_seconds'] + row['seeding_seconds']:.1f} s"
        monitor.note(f"{where}: {len(labelled)} labelled, Dice {row['dice']:.3f} ({cost})")


def _train(
    run: _Run, strategy: Strategy, model: nn.Module, seed: int, round: int, labelled: list[int], folder: RoundFolder
) -> None:
    config = run.config
    start = time.perf_counter()
    reached = train(
        run.fabric,
        model,
        run.dataset.train.subset(labelled),
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=seed,
        round=round,
        loss=strategy.loss,
        on_batch=run.monitor.advance,
    )
    seconds = time.perf_counter() - start
    folder.save_model(model)
    folder.finish("train", train_seconds=seconds, train_loss=reached)


def _evaluate(
    run: _Run,
    strategy: Strategy,
    model: nn.Module,
    seed: int,
    round: int,
    n_labelled: int,
    folder: RoundFolder,
    last: bool,
) -> None:
    start = time.perf_counter()
    counts = evaluate(
        run.fabric,
        model,
        run.dataset.test,
        len(run.dataset.classes),
        batch_size=_scoring_batch(run),
        group=run.group,
        on_batch=lambda images: run.monitor.advance(FORWARD_COST * images),
    )
    metrics = counts.metrics(run.dataset.classes)
    seconds = time.perf_counter() - start
    if not run.leads:
        return
    if last and seed == run.config.seeds[0]:
        _save_frames(run, strategy.name, model, seed, round)
    place = {"strategy": strategy.name, "seed": seed, "round": round, "n_labelled": n_labelled}
    facts = {name: value for name, value in folder.facts().items() if name != "finished"}
    folder.save_metrics({**place, **metrics, **facts, "eval_seconds": seconds})
    folder.finish("evaluate")


def _query(
    run: _Run, strategy: Strategy, model: nn.Module, seed: int, round: int, labelled: list[int]
) -> dict[str, Any]:
    """What picks.json holds."""
    config, pool = run.config, run.dataset.train
    taken = set(labelled)
    unlabelled = [pool.ids[position] for position in range(len(pool)) if position not in taken]
    query = Query(
        candidates=unlabelled,
        pool=FramePool(pool, range(len(pool)), run.pool_images),
        model=model,
        labelled=[pool.ids[position] for position in labelled],
        videos=dict(zip(pool.ids, pool.videos, strict=True)),
        seed=seed,
        round=round,
        n_rounds=config.rounds,
        batch_size=_scoring_batch(run),
        device=run.fabric.device,
        precision=config.precision,
        group=run.group,
    )
    start = time.perf_counter()
    rating = strategy.rate(query)
    rated = time.perf_counter()
    ids = list(rating.draw(config.query_size, Taken()))
    drawn = time.perf_counter()
    if len(ids) != config.query_size or len(set(ids)) != len(ids) or not set(unlabelled).issuperset(ids):
        raise UserError(
            f"strategy {strategy.name!r} must pick {config.query_size} different ids of the unlabelled pool; it gave "
            f"{len(ids)}, {len(set(unlabelled).intersection(ids))} of them different and unlabelled"
        )
    scores = {str(id): score for id, score in rating.scores.items()}
    return {"ids": ids, "scores": scores, "embed_seconds": rated - start, "seeding_seconds": drawn - rated}


def _build(config: RunConfig, dataset: Dataset, strategy: Strategy, seed: int, round: int) -> nn.Module:
    model = build_model(
        config.architecture,
        config.encoder,
        encoder_weights=config.encoder_weights,
        num_classes=len(dataset.classes),
        head_kernel=config.head_kernel,
        seed=stream_seed("weights", seed, round),
    )
    added = stream_seed("strategy's weights", seed, round)
    return strategy.prepare_model(model, len(dataset.classes), added)


# Where it runs.


def _launch(config: RunConfig) -> tuple[Fabric, dist.ProcessGroup | None]:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no usable GPU; use --device cpu or auto")
    use_cuda = config.device != "cpu" and torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if use_cuda:
        # Equal picks from equal seeds: no kernel whose sums depend on the order in which threads arrive.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    fabric = Fabric(
        accelerator="cuda" if use_cuda else "cpu", devices=[local_rank] if use_cuda else 1, precision=config.precision
    )
    group = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=PATIENCE)
        group = dist.group.WORLD
    return fabric, group


def lost_process(error: RuntimeError) -> bool:
    """Whether an error means that another process of this job has gone."""
    return dist.is_initialized() and any(sign in str(error) for sign in LOST)


def _near(fabric: Fabric, images: npt.NDArray[np.uint8]) -> Tensor | npt.NDArray[np.uint8]:
    """The pool's images on the GPU where they take at most a quarter of what is free there, else as they are."""
    if fabric.device.type != "cuda" or images.nbytes > torch.cuda.mem_get_info(fabric.device)[0] / 4:
        return images
    return torch.from_numpy(np.array(images)).to(fabric.device)


def _share_weights(run: _Run, model: nn.Module) -> None:
    if run.group is not None:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0, group=run.group)


def _from_leader(run: _Run, read: Callable[[], T]) -> T:
    """What the first process reads from its files, on every process."""
    if run.group is None:
        return read()
    found = [read() if run.leads else None]
    dist.broadcast_object_list(found, src=0, group=run.group)
    value: T = found[0]  # type: ignore[assignment]
    return value


def _scoring_batch(run: _Run) -> int:
    return 64 if run.fabric.device.type == "cuda" else 16


# What a run is checked for before it starts.


def _check_budget(config: RunConfig, strategies: Sequence[Strategy], pool: int) -> None:
    wanted = config.init_size + (config.rounds - 1) * config.query_size
    if wanted > pool and not all(strategy.takes_whole_pool for strategy in strategies):
        raise UserError(
            f"{config.rounds} rounds of {config.init_size} + {config.query_size} frames a query need {wanted}, but the "
            f"pool has {pool}: lower --rounds, --init_size or --query_size"
        )


def _prepare_folder(run: _Run) -> None:
    out = run.out
    # Again: another process may have begun it meanwhile.
    check_unchanged(out / "config.yaml", plain(run.config), FREE_FIELDS)
    if begun_with(out / "config.yaml") is None:
        if rounds := sorted(out.glob("*/seed*/round*/state.json")):
            raise UserError(
                f"{out / 'config.yaml'} is missing where {rounds[0].parent} is: restore it, or choose another --out"
            )
    elif artefacts.load_dataset(out) not in (None, artefacts.summarize(run.dataset)):
        raise UserError(f"the data has changed since {out} was begun: choose another --out, or restore the data")
    # Last the file that the folder counts as begun from: until then no other may have to be like this run's.
    artefacts.save_dataset(out, run.dataset)
    _save_environment(run)
    atomic.write_text(out / "config.yaml", yaml.safe_dump(plain(run.config), sort_keys=False))


def _save_environment(run: _Run) -> None:
    """Write environment.json: where the run is now and, under "earlier", every other environment that it was in, by
    number from the oldest, 1, on: not all rounds of a run that moved, or whose libraries changed, come from one."""
    path, now = run.out / "environment.json", _environment(run)
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
        by_number = last.pop("earlier", {})
        seen = [*(by_number[number] for number in sorted(by_number, key=int)), last]
    except (OSError, ValueError, AttributeError, TypeError):  # not there, or damaged: no result depends on it
        seen = []
    earlier = {str(number): other for number, other in enumerate((e for e in seen if e and e != now), start=1)}
    if earlier and seen[-1] != now:
        names = [name for name in now if seen[-1].get(name) != now[name]]
        run.monitor.note(f"another environment than before: {', '.join(names)} (environment.json keeps both)")
    atomic.write_json(path, {**now, **({"earlier": earlier} if earlier else {})})


def _environment(run: _Run) -> dict[str, Any]:
    packages = {}
    for name in ("torch", "numpy", "segmentation_models_pytorch", "lightning_fabric", "faiss", "triton"):
        try:
            packages[name] = __import__(name).__version__
        except ImportError:
            packages[name] = None
    device = run.fabric.device
    return {
        "alges_fast": alges_fast.__version__,
        "python": platform.python_version(),
        "packages": packages,
        "machine": platform.machine(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "processes": 1 if run.group is None else dist.get_world_size(run.group),
        "native": alges_fast.native_status(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


# How much there is to do.


def _rounds(config: RunConfig, strategy: Strategy) -> int:
    return 1 if strategy.takes_whole_pool else config.rounds


def _work(run: _Run, strategy: Strategy) -> float:
    config, n_rounds = run.config, _rounds(run.config, strategy)
    first = len(run.dataset.train) if strategy.takes_whole_pool else config.init_size
    return sum(_round_work(run, first + r * config.query_size, r + 1 == n_rounds) for r in range(n_rounds))


def _round_work(run: _Run, n_labelled: int, last: bool) -> float:
    scored = len(run.dataset.test) + (0 if last else len(run.dataset.train))
    return run.config.epochs * n_labelled + FORWARD_COST * scored


# What a run leaves.


def _row(folder: RoundFolder) -> dict[str, Any]:
    """One row of results.csv; a round that asked for no frames spent no time choosing."""
    row = {"embed_seconds": 0.0, "seeding_seconds": 0.0, **folder.metrics()}
    if (folder.path / "picks.json").exists():
        row.update(folder.query_seconds())
    return row


def _write_results(run: _Run) -> list[dict[str, Any]]:
    """Derive results.csv from all finished rounds, in the configured order, whoever finished them in what order."""
    if not run.leads:
        return []
    columns = [*COLUMNS, *(f"dice_{name}" for name in run.dataset.classes)]
    rows = []
    with atomic.locked(run.out / LOCK):
        for strategy, seed in itertools.product(run.strategies, run.config.seeds):
            for round in range(_rounds(run.config, strategy)):
                place, folder = (strategy.name, seed, round), RoundFolder.of(run.out, strategy.name, seed, round)
                if place not in run.rows and folder.n_finished() == len(STEPS):
                    run.rows[place] = _row(folder)
                    if not run.rows[place].keys() >= set(columns):
                        raise folder.damaged("metrics.json")
                if place in run.rows:
                    rows.append({name: run.rows[place][name] for name in columns})
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: "" if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()})
        atomic.write_text(run.out / "results.csv", text.getvalue())
    return rows


@torch.no_grad()
def _save_frames(run: _Run, strategy: str, model: nn.Module, seed: int, round: int) -> None:
    """Test frames, evenly spaced, with the model's predictions and norm maps, for the report."""
    test = run.dataset.test
    positions = sorted({int(p) for p in np.linspace(0, len(test) - 1, N_REPORT_FRAMES + 2)[1:-1].round()})
    frames = test.subset(positions)
    images = to_input(frames.images).to(run.fabric.device)
    try:
        norms = LastLayer.find(model, images[:1]).pixel_gradients(images, outputs=("norm_map",)).norm_map
    except ValueError as error:
        run.monitor.note(f"no norm maps in the report: {error}")
        return
    assert norms is not None
    artefacts.save_frames(
        run.out,
        artefacts.FrameMaps(
            strategy=strategy,
            seed=seed,
            round=round,
            ids=frames.ids,
            images=frames.images,
            masks=frames.masks,
            predictions=predict(run.fabric, model, frames.images).to(torch.uint8).cpu().numpy(),
            norm_maps=norms.to(torch.float16).cpu().numpy(),
        ),
    )


def _save_thumbnails(run: _Run) -> None:
    pool = run.dataset.train
    picked = set()
    for strategy in run.strategies:
        for seed in run.config.seeds:
            for round in range(_rounds(run.config, strategy) - 1):
                picked.update(RoundFolder.of(run.out, strategy.name, seed, round).picked())
    artefacts.save_thumbnails(run.out, [(name, pool.images[pool.index(name)]) for name in sorted(picked)])
