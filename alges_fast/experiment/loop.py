"""The experiment loop: Algorithm 1 of ALGES for every curve (a strategy with its windows) and seed, resumable at
every step.

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
from dataclasses import asdict
from typing import Any

from torch import nn

from alges_fast import atomic
from alges_fast.data import load_dataset
from alges_fast.errors import UserError
from alges_fast.experiment.config import RunConfig
from alges_fast.experiment.curve import Curve, check_budget, check_losses, check_windows, curves_of
from alges_fast.experiment.folder import check_config, prepare_folder
from alges_fast.experiment.processes import LOCK, launch
from alges_fast.experiment.results import save_frames, save_thumbnails, write_results
from alges_fast.experiment.setting import FORWARD_COST, Monitor, Round, Setting, on_device_if_small
from alges_fast.experiment.state import STEPS, RoundFolder
from alges_fast.job import naming_lost_processes
from alges_fast.pool import Id
from alges_fast.report import write_report
from alges_fast.selection import BrokenPromise, choose
from alges_fast.strategies import Query, scores_of
from alges_fast.training.errors import Diverged, TooFewLabels
from alges_fast.training.evaluation import evaluate, predict
from alges_fast.training.labelled import Labelled, Piece, box_of, corrected
from alges_fast.training.learner import Training, make_learner
from alges_fast.training.optimising import MEMORY_FORMAT
from alges_fast.windows import Window, frame_of, named


def run_experiment(config: RunConfig, monitor: Monitor | None = None) -> list[dict[str, Any]]:
    """Run an experiment, or what is left of it, under config.out, and write its report.

    Returns:
        The rows of results.csv, sorted by strategy (as configured), seed and round.

    Raises:
        UserError: a mistake in the configuration or the data, or files that cannot be written or read.
        LostProcess: another process of this job has gone.
    """
    with naming_lost_processes():
        return _run(_prepare(config, monitor or Monitor()))


def _run(setting: Setting) -> list[dict[str, Any]]:
    if setting.processes.leads:
        with atomic.locked(setting.out / LOCK):
            prepare_folder(setting)
    for note in setting.dataset.notes:
        setting.monitor.note(note)
    setting.monitor.start(sum(map(setting.work, setting.curves)) * len(setting.config.seeds))
    _run_all(setting, [(seed, curve) for seed in setting.config.seeds for curve in setting.curves])
    rows = write_results(setting)
    if setting.processes.leads:
        setting.monitor.doing("writing the report")
        with atomic.locked(setting.out / LOCK):
            save_thumbnails(setting)
            write_report(setting.out)
    return rows


def _prepare(config: RunConfig, monitor: Monitor) -> Setting:
    """Load what the rounds share. What the user may have mistaken is found here, before anything is written."""
    curves = curves_of(config)
    processes = launch(config.device, config.precision)
    check_config(config)
    dataset = load_dataset(
        config.dataset,
        root=config.data_root,
        image_size=config.image_size,
        split=config.split,
        ignore_index=config.ignore_index,
        on_bad_image=config.on_bad_image,
        progress=monitor.preparing,
    )
    check_budget(config, curves, len(dataset.train))
    check_windows(config, curves)
    check_losses(config, curves)
    learner = make_learner(config, len(dataset.classes), dataset.train, processes.device, monitor.preparing)
    pool_inputs = on_device_if_small(learner.inputs(dataset.train), processes.device)
    test_inputs = learner.inputs(dataset.test)
    return Setting(config, curves, dataset, processes, monitor, learner, pool_inputs, test_inputs)


def _run_all(setting: Setting, pairs: Sequence[tuple[int, Curve]]) -> None:
    """First the pairs that no other process is at; then the others, in case their process has died."""
    others: list[tuple[int, Curve]] = []
    for wait in (False, True):
        for seed, curve in others if wait else pairs:
            if wait:
                setting.monitor.doing(f"waiting for another process: {curve.name}, seed {seed}")
            rounds_folder = RoundFolder.of(setting.out, curve.name, seed, 0).path.parent
            with setting.processes.claimed(rounds_folder, wait=wait) as mine:
                if mine:
                    _run_curve(setting, curve, seed)
                else:
                    others.append((seed, curve))


def _run_curve(setting: Setting, curve: Curve, seed: int) -> None:
    labelled = setting.labelled_first(curve, seed)
    for number in range(curve.n_rounds):
        round = Round(setting, curve, seed, number, labelled)
        n_done = setting.processes.from_leader(round.folder.n_finished)
        if n_done == len(STEPS):
            setting.monitor.advance(round.work)
        else:
            _run_round(round, n_done)
        if not round.is_last:
            labelled = _with_picked(round)


def _run_round(round: Round, n_done: int) -> None:
    """The steps of a round after the first `n_done` of them."""
    dataset, monitor = round.setting.dataset, round.setting.monitor
    processes, folder = round.setting.processes, round.folder
    model = round.new_model()
    model.to(processes.device, memory_format=MEMORY_FORMAT).eval()  # type: ignore[call-overload]

    if n_done > STEPS.index("train"):
        if processes.leads:
            folder.load_model(model)
        monitor.advance(round.training_work)
    else:
        monitor.doing(f"{round}: training on {round.n_labelled}")
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
        monitor.doing(f"{round}: choosing {round.curve.query_size}")
        picks = _query(round, model)
        monitor.advance(FORWARD_COST * len(dataset.train))
    if processes.leads:
        _finish(round, picks)


def _train(round: Round, model: nn.Module) -> None:
    setting = round.setting
    known = setting.first_trainings.get(round.seed) if round.is_trained_alike else None
    if known is None:
        loss, seconds = _train_in_place(round, model)
        if round.is_trained_alike:
            state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
            setting.first_trainings.clear()
            setting.first_trainings[round.seed] = state, loss, seconds
    else:
        weights, loss, seconds = known
        model.load_state_dict(weights)
        setting.monitor.advance(round.training_work)
    round.folder.save_model(model, setting.learner.card(setting.dataset.classes))
    round.folder.finish("train", train_seconds=seconds, train_loss=loss)


def _train_in_place(round: Round, model: nn.Module) -> tuple[float, float]:
    """The loss that a round's network reaches, and the seconds that it takes.

    Raises:
        UserError: it cannot be trained.
    """
    setting, config = round.setting, round.setting.config
    start = time.perf_counter()
    training = Training(
        labelled=round.labelled,
        inputs=setting.pool_inputs,
        seed=round.seed,
        round=round.number,
        loss=round.strategy.loss,
        needs_places=round.strategy.trains_own_model,
        on_batch=setting.monitor.advance,
    )
    try:
        loss = setting.learner.train(setting.processes.fabric, model, training)
    except TooFewLabels as error:
        raise UserError(f"{round}: {error}: raise --init_size") from error
    except Diverged as error:
        lower = f"--head_lr from {config.head_lr}" if setting.learner.is_frozen else f"--lr from {config.lr}"
        raise UserError(f"{round}: {error}: lower {lower}") from error
    return loss, time.perf_counter() - start


def _evaluate(round: Round, model: nn.Module) -> None:
    setting, folder = round.setting, round.folder
    start = time.perf_counter()
    counts = evaluate(
        setting.processes.fabric,
        model,
        setting.dataset.test,
        len(setting.dataset.classes),
        inputs=setting.test_inputs,
        transform=setting.learner.transform,
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
    place = {
        "strategy": round.strategy.name,
        "regions": round.curve.grid,
        "seed": round.seed,
        "round": round.number,
        "n_labelled": round.n_labelled,
        **asdict(round.labelled.effort()),
    }
    facts = {name: value for name, value in folder.facts().items() if name != "finished"}
    folder.save("metrics.json", {**place, **metrics, **facts, "eval_seconds": seconds})
    folder.finish("evaluate")


def _query(round: Round, model: nn.Module) -> dict[str, Any]:
    """What picks.json holds. Raises UserError: the strategy drew what it must not."""
    setting, config, pool = round.setting, round.setting.config, round.setting.pool
    regions, side = round.curve.regions, config.image_size
    query = Query(
        candidates=pool.ids,
        pool=setting.frames,
        model=model,
        labelled=round.labelled.pieces,
        regions=regions,
        sizes=dict.fromkeys(pool.ids, (side, side)),
        class_shares=round.labelled.class_shares(len(setting.dataset.classes)),
        videos=dict(zip(pool.ids, pool.videos, strict=True)),
        features=setting.frames if setting.learner.is_frozen else None,
        seed=round.seed,
        round=round.number,
        n_rounds=round.curve.n_rounds,
        batch_size=setting.scoring_batch,
        device=setting.processes.device,
        precision=config.precision,
        transform=None if setting.learner.is_frozen else setting.learner.transform,  # features are scored as kept
        group=setting.processes.group,
    )
    pixels = None
    if regions is not None:  # what an earlier query left over, too
        pixels = round.curve.n_labelled(config, len(pool), round.number + 1) * side**2 - round.labelled.n_pixels
    try:
        most = config.frames_at_most if regions is not None else None
        chosen = choose(
            round.strategy,
            query,
            round.curve.query_size,
            pixels=pixels,
            frames_at_most=most,
            consider=config.consider,
        )
    except BrokenPromise as error:
        raise UserError(str(error)) from error
    # Of windows, of which a pool has very many, the scores of those picked alone.
    scored = chosen.rating.scores if regions is None else scores_of(chosen.rating, chosen.ids)
    return {
        "ids": [str(candidate) for candidate in chosen.ids],
        "scores": {str(candidate): score for candidate, score in scored.items()},
        "corrected": _corrected(round, model, chosen.ids) if setting.processes.leads else 0,
        **({} if config.consider is None else {"considered": chosen.n_considered}),
        "embed_seconds": chosen.seconds[0],
        "seeding_seconds": chosen.seconds[1],
    }


def _finish(round: Round, picks: dict[str, Any] | None) -> None:
    """Record the last step, and the round in results.csv."""
    folder = round.folder
    if picks is not None:
        folder.save("picks.json", picks)
    if not round.setting.config.keep_models:
        folder.remove_model()  # before the last step is recorded, after which nobody would
    folder.finish("query")
    write_results(round.setting)
    row = round.setting.rows[round.place]
    cost = f"trained in {row['train_seconds']:.1f} s"
    if picks is not None:
        cost += f", chose {len(picks['ids'])} in {row['embed_seconds'] + row['seeding_seconds']:.1f} s"
    round.setting.monitor.note(f"{round}: {round.n_labelled} labelled, Dice {row['dice']:.3f} ({cost})")


def _with_picked(round: Round) -> Labelled:
    """What is labelled after a finished round, as its folder says it."""
    labelled = round.labelled
    names = round.setting.processes.from_leader(round.folder.picked)
    picked = names if round.curve.regions is None else [named(name) for name in names]
    if not labelled.leaves(picked, round.setting.pieces(round.curve)):
        raise round.folder.damaged("picks.json")
    return labelled.with_pieces(picked, round.setting.processes.from_leader(round.folder.corrected))


def _corrected(round: Round, model: nn.Module, picked: Sequence[Id | Window]) -> int:
    """What an annotator draws of the picks who is shown what the model predicts in them, in pixels."""
    setting, at = round.setting, round.setting.pool.index
    pieces: dict[int, list[Piece]] = {}
    for candidate in picked:
        piece = candidate if isinstance(candidate, Window) else str(candidate)
        pieces.setdefault(at(str(frame_of(piece))), []).append(piece)
    rows, total = list(pieces), 0
    for start in range(0, len(rows), setting.scoring_batch):
        batch = rows[start : start + setting.scoring_batch]
        predicted = predict(
            setting.processes.fabric,
            model,
            setting.pool_inputs[batch],
            size=setting.pool.masks.shape[1:],
            transform=setting.learner.transform,
        )
        for row, mask in zip(batch, predicted.cpu().numpy(), strict=True):
            total += corrected(setting.pool.masks[row], mask, list(map(box_of, pieces[row])))
    return total
