"""The folder of a run: begun once, continued with the same configuration and data only."""

from __future__ import annotations

import json
import platform
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml

import alges_fast
from alges_fast import atomic
from alges_fast.errors import UserError
from alges_fast.experiment.config import RunConfig
from alges_fast.experiment.setting import Setting
from alges_fast.report import artefacts
from alges_fast.settings import as_settings, from_settings

FREE_FIELDS = frozenset({"preset", "out", "keep_models"})
"""Fields of RunConfig that may differ when a run is resumed: no result depends on them."""
GROWING_FIELDS = frozenset({"seeds", "strategies"})
"""Fields that more may be added to: every curve of every seed stands alone."""


def check_config(config: RunConfig) -> None:
    """Refuse to continue a folder that was begun with another configuration.

    Raises:
        UserError: a damaged file, or the differences.
    """
    now, before = as_settings(config), _begun_with(Path(config.out))
    if before is None:
        return
    names = [name for name in (*now, *(before.keys() - now.keys())) if name not in FREE_FIELDS]
    differences = [
        f"{name} was {before.get(name)} and is now {now.get(name)}"
        for name in names
        if before.get(name) != _begun(now.get(name), before.get(name), name in GROWING_FIELDS)
    ]
    if differences:
        raise UserError(
            f"{config.out} holds a run of another configuration ({'; '.join(differences)}): choose another --out, or "
            "the old configuration to continue it"
        )


def prepare_folder(setting: Setting) -> None:
    """Begin the run's folder, or see that this run is the one it was begun with. The caller holds its lock.

    Raises:
        UserError: the folder is another run's.
    """
    out = setting.out
    check_config(setting.config)  # again: another process may have begun it meanwhile
    if _begun_with(out) is None:
        if rounds := sorted(out.glob("*/seed*/round*/state.json")):
            raise UserError(
                f"{out / 'config.yaml'} is missing where {rounds[0].parent} is: restore it, or choose another --out"
            )
    elif artefacts.load_dataset(out) not in (None, artefacts.summarize(setting.dataset)):
        raise UserError(f"the data has changed since {out} was begun: choose another --out, or restore the data")
    # Last the file that the folder counts as begun from: until then no other may have to be like this run's.
    artefacts.save_dataset(out, setting.dataset)
    _save_environment(setting)
    atomic.write_text(out / "config.yaml", yaml.safe_dump(as_settings(setting.config), sort_keys=False))


def _begun_with(out: Path) -> dict[str, Any] | None:
    """What a folder was begun with, from its config.yaml, and for settings that its version did not have, what they
    are where nobody gives them; None where it is not begun.

    Raises:
        UserError: a damaged file.
    """
    path = out / "config.yaml"
    if not path.exists():
        return None
    try:
        written = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        known = {each.name for each in fields(RunConfig)}
        ours = from_settings(RunConfig, {name: value for name, value in written.items() if name in known})
        return as_settings(ours) | written
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged: restore it, or choose another --out") from error
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or choose another --out") from None


def _begun(now: Any, before: Any, growing: bool) -> Any:
    """As much of a list as there was, where it may grow; else the value as it is."""
    return now[: len(before)] if growing and isinstance(now, list) and isinstance(before, list) else now


def _save_environment(setting: Setting) -> None:
    """Write environment.json: where the run is now and, under "earlier", every other environment that it was in, by
    number from the oldest, 1, on: not all rounds of a run that moved, or whose libraries changed, come from one."""
    path, now = setting.out / "environment.json", _environment(setting)
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
        by_number = last.pop("earlier", {})
        seen = [*(by_number[number] for number in sorted(by_number, key=int)), last]
    except (OSError, ValueError, AttributeError, TypeError):  # not there, or damaged: no result depends on it
        seen = []
    earlier = {str(number): other for number, other in enumerate((e for e in seen if e and e != now), start=1)}
    if earlier and seen[-1] != now:
        names = [name for name in now if seen[-1].get(name) != now[name]]
        setting.monitor.note(f"another environment than before: {', '.join(names)} (environment.json keeps both)")
    atomic.write_json(path, {**now, **({"earlier": earlier} if earlier else {})})


def _environment(setting: Setting) -> dict[str, Any]:
    packages = {}
    for name in ("torch", "numpy", "segmentation_models_pytorch", "lightning_fabric", "faiss", "triton"):
        try:
            packages[name] = __import__(name).__version__
        except ImportError:
            packages[name] = None
    device = setting.processes.device
    return {
        "alges_fast": alges_fast.__version__,
        "python": platform.python_version(),
        "packages": packages,
        "machine": platform.machine(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "processes": setting.processes.size,
        "native": alges_fast.native_status(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
