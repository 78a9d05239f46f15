"""The experiment loop: Algorithm 1 of ALGES for every strategy and seed, resumable at every step.

For each strategy and seed, in round r: train from scratch on what is labelled, evaluate on the test split, and (but for
the last round) ask the strategy what of the pool to label next. What is labelled first depends on the seed alone and a
round's weights and shuffling on (seed, round) alone: strategies are compared in pairs, and none disturbs another.

With several processes (torchrun) the first one trains and sends the weights to the others: the labelled set is small,
and so a run's numbers do not depend on how many processes took part. Testing and scoring the pool, which are large, are
shared.

Several runs of one command in one folder share its work by strategy and seed: each takes one that nobody is at, under
a lock that ends with the process that holds it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from alges_fast import atomic
from alges_fast.data import load_dataset, to_input
from alges_fast.errors import UserError
from alges_fast.experiment.annotator import Labelled, unlabelled
from alges_fast.experiment.config import RunConfig
from alges_fast.experiment.folder import check_config, prepare_folder
from alges_fast.experiment.processes import LOCK, launch
from alges_fast.experiment.results import save_frames, save_thumbnails, write_results
from alges_fast.experiment.setting import (
    FORWARD_COST,
    Monitor,
    Round,
    Setting,
    check_budget,
    make_strategies,
    new_model,
    on_device_if_small,
)
from alges_fast.experiment.state import STEPS, RoundFolder
from alges_fast.experiment.training import MEMORY_FORMAT, evaluate, train
from alges_fast.models import check_image_size
from alges_fast.report import write_report
from alges_fast.strategies import Query, Strategy, Taken


def run_experiment(config: RunConfig, monitor: Monitor | None = None) -> list[dict[str, Any]]:
    """Run an experiment, or what is left of it, under config.out, and write its report.

    Returns:
        The rows of results.csv, sorted by strategy (as configured), seed and round.

    Raises:
        UserError: a mistake in the configuration or the data, or files that cannot be written or read.
    """
    setting = _prepare(config, monitor or Monitor())
    if setting.processes.leads:
        with atomic.locked(setting.out / LOCK):
            prepare_folder(setting)
    for note in setting.dataset.notes:
        setting.monitor.note(note)
    setting.monitor.start(sum(map(setting.work, setting.strategies)) * len(config.seeds))
    _run_all(setting, [(seed, strategy) for seed in config.seeds for strategy in setting.strategies])
    rows = write_results(setting)
    if setting.processes.leads:
        setting.monitor.doing("writing the report")
        with atomic.locked(setting.out / LOCK):
            save_thumbnails(setting)
            write_report(setting.out)
    return rows


def _prepare(config: RunConfig, monitor: Monitor) -> Setting:
    """Load what the rounds share. What the user may have mistaken is found here, before anything is written."""
    strategies = make_strategies(config.strategies)
    processes = launch(config.device, config.precision)
    check_config(config)
    dataset = load_dataset(
        config.dataset,
        root=config.data_root,
        image_size=config.image_size,
        split=config.split,
        ignore_index=config.ignore_index,
        on_bad_image=config.on_bad_image,
        progress=monitor.loading,
    )
    check_budget(config, strategies, len(dataset.train))
    check_image_size(new_model(config, dataset, strategies[0], 0, 0), config.image_size)
    pool_images = on_device_if_small(dataset.train.images, processes.device)
    return Setting(config, strategies, dataset, processes, monitor, pool_images)


def _run_all(setting: Setting, pairs: Sequence[tuple[int, Strategy]]) -> None:
    """First the pairs that no other process is at; then the others, in case their process has died."""
    others: list[tuple[int, Strategy]] = []
    for wait in (False, True):
        for seed, strategy in others if wait else pairs:
            if wait:
                setting.monitor.doing(f"waiting for another process: {strategy.name}, seed {seed}")
            rounds_folder = RoundFolder.of(setting.out, strategy.name, seed, 0).path.parent
            with setting.processes.claimed(rounds_folder, wait=wait) as mine:
                if mine:
                    _run_strategy(setting, strategy, seed)
                else:
                    others.append((seed, strategy))


def _run_strategy(setting: Setting, strategy: Strategy, seed: int) -> None:
    labelled = setting.labelled_first(strategy, seed)
    for number in range(setting.n_rounds(strategy)):
        round = Round(setting, strategy, seed, number, labelled)
        n_done = setting.processes.from_leader(round.folder.n_finished)
        if n_done == len(STEPS):
            setting.monitor.advance(round.work)
        else:
            _run_round(round, n_done)
        if not round.is_last:
            labelled = _with_picked(round)


def _run_round(round: Round, n_done: int) -> None:
    """The steps of a round after the first `n_done` of them."""
    config, dataset, monitor = round.setting.config, round.setting.dataset, round.setting.monitor
    processes, folder = round.setting.processes, round.folder
    model = round.new_model()
    model.to(processes.device, memory_format=MEMORY_FORMAT).eval()  # type: ignore[call-overload]

    if n_done > STEPS.index("train"):
        if processes.leads:
            folder.load_model(model)
        monitor.advance(config.epochs * len(round.labelled.positions))
    else:
        monitor.doing(f"{round}: training on {len(round.labelled.pieces)}")
        if processes.leads:
            _train(round, model)
    processes.share_weights(model)

    if n_done > STEPS.index("evaluate"):
        monitor.advance(FORWARD_COST * len(dataset.test))
    else:
        monitor.doing(f"{round}: testing")
        _evaluate(round, model)

    picks = None
    if not round.is_last:
        monitor.doing(f"{round}: choosing {config.query_size}")
        picks = _query(round, model)
        monitor.advance(FORWARD_COST * len(dataset.train))
    if processes.leads:
        _finish(round, picks)


def _train(round: Round, model: nn.Module) -> None:
    setting, config = round.setting, round.setting.config
    start = time.perf_counter()
    reached = train(
        setting.processes.fabric,
        model,
        round.labelled.frames(),
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=round.seed,
        round=round.number,
        loss=round.strategy.loss,
        on_batch=setting.monitor.advance,
    )
    seconds = time.perf_counter() - start
    round.folder.save_model(model)
    round.folder.finish("train", train_seconds=seconds, train_loss=reached)


def _evaluate(round: Round, model: nn.Module) -> None:
    setting, folder = round.setting, round.folder
    start = time.perf_counter()
    counts = evaluate(
        setting.processes.fabric,
        model,
        setting.dataset.test,
        len(setting.dataset.classes),
        batch_size=setting.scoring_batch,
        group=setting.processes.group,
        on_batch=lambda images: setting.monitor.advance(FORWARD_COST * images),
    )
    metrics = counts.metrics(setting.dataset.classes)
    seconds = time.perf_counter() - start
    if not setting.processes.leads:
        return
    if round.is_last and round.seed == setting.config.seeds[0]:
        save_frames(round, model)
    strategy, seed, number = round.place
    place = {"strategy": strategy, "seed": seed, "round": number, "n_labelled": len(round.labelled.pieces)}
    facts = {name: value for name, value in folder.facts().items() if name != "finished"}
    folder.save_metrics({**place, **metrics, **facts, "eval_seconds": seconds})
    folder.finish("evaluate")


def _query(round: Round, model: nn.Module) -> dict[str, Any]:
    """What picks.json holds."""
    setting, config, pool = round.setting, round.setting.config, round.setting.pool
    candidates = unlabelled(pool.ids, round.labelled.pieces)
    query = Query(
        candidates=candidates,
        pool=setting.frames,
        model=model,
        labelled=round.labelled.pieces,
        videos=dict(zip(pool.ids, pool.videos, strict=True)),
        seed=round.seed,
        round=round.number,
        n_rounds=config.rounds,
        batch_size=setting.scoring_batch,
        device=setting.processes.device,
        precision=config.precision,
        transform=to_input,
        group=setting.processes.group,
    )
    start = time.perf_counter()
    rating = round.strategy.rate(query)
    rated = time.perf_counter()
    ids = list(rating.draw(config.query_size, Taken()))
    drawn = time.perf_counter()
    if len(ids) != config.query_size or len(set(ids)) != len(ids) or not set(candidates).issuperset(ids):
        raise UserError(
            f"strategy {round.strategy.name!r} must pick {config.query_size} different ids of the unlabelled pool; it "
            f"gave {len(ids)}, {len(set(candidates).intersection(ids))} of them different and unlabelled"
        )
    scores = {str(id): score for id, score in rating.scores.items()}
    return {"ids": ids, "scores": scores, "embed_seconds": rated - start, "seeding_seconds": drawn - rated}


def _finish(round: Round, picks: dict[str, Any] | None) -> None:
    """Record the last step, and the round in results.csv."""
    folder = round.folder
    if picks is not None:
        folder.save_picks(picks)
    if not round.setting.config.keep_models:
        folder.remove_model()  # before the last step is recorded, after which nobody would
    folder.finish("query")
    write_results(round.setting)
    row = round.setting.rows[round.place]
    cost = f"trained in {row['train_seconds']:.1f} s"
    if picks is not None:
        cost += f", chose {len(picks['ids'])} in {row['embed_seconds'] + row['seeding_seconds']:.1f} s"
    round.setting.monitor.note(f"{round}: {len(round.labelled.pieces)} labelled, Dice {row['dice']:.3f} ({cost})")


def _with_picked(round: Round) -> Labelled:
    """What is labelled after a finished round, as its folder says it."""
    labelled, pool = round.labelled, round.setting.pool
    picked = round.setting.processes.from_leader(round.folder.picked)
    if not set(unlabelled(pool.ids, labelled.pieces)).issuperset(picked):
        raise round.folder.damaged("picks.json")
    return labelled.with_pieces(picked)
