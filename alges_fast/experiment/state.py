"""What is finished of one round of one curve and seed, on disk, so that a run continues where it was stopped.

    OUT/<curve>/seed<k>/round<rr>/    a curve is a strategy, or with windows <strategy>@<rows>x<columns>
        state.json         {"finished": step, ...}: this step and those before it are done, and what they made is on
                           disk; the rest is what training cost and reached
        model.safetensors  made by "train", removed when the round is finished
        metrics.json       made by "evaluate": one row of results.csv but for the query's timings
        picks.json         made by "query": {"ids": [...], "scores": {id: score}, "embed_seconds", "seeding_seconds"};
                           windows are named as <frame>#xywh=<x>,<y>,<width>,<height>

A step writes its file first and its name into state.json last, both by atomic rename. Killed in between, it is done
again and, everything being seeded, writes the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from alges_fast import atomic
from alges_fast.errors import UserError
from alges_fast.models.saved import Card, serialized

STEPS = ("train", "evaluate", "query")


@dataclass(frozen=True)
class RoundFolder:
    """One round's folder; every method reads or writes files in it."""

    path: Path

    @classmethod
    def of(cls, out: Path, curve: str, seed: int, round: int) -> RoundFolder:
        return cls(out / curve / f"seed{seed}" / f"round{round:02d}")

    def n_finished(self) -> int:
        """How many of STEPS are done; none if the model that the rest need is damaged: training makes the same again.

        Raises:
            UserError: the state file is damaged.
        """
        if not (self.path / "state.json").exists():
            return 0
        last = self.facts().get("finished")
        if last not in STEPS:
            raise self.damaged("state.json")
        if last != STEPS[-1] and not self._has_model():
            return 0
        return STEPS.index(last) + 1

    def finish(self, step: str, **facts: float) -> None:
        """Record that this step and those before it are done, with facts to keep beside those of earlier steps."""
        known = self.facts() if (self.path / "state.json").exists() else {}
        atomic.write_json(self.path / "state.json", {**known, **facts, "finished": step})

    def facts(self) -> dict[str, Any]:
        """What `finish` was given so far."""
        return self._read("state.json")

    def save_model(self, model: nn.Module, card: Card) -> None:
        atomic.write_bytes(self.path / "model.safetensors", serialized(model, card))

    def load_model(self, model: nn.Module) -> None:
        """Load the weights into a model of the same kind. No pickle is read."""
        try:
            model.load_state_dict(safetensors.torch.load_file(self.path / "model.safetensors"))
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            raise self.damaged("model.safetensors") from error

    def remove_model(self) -> None:
        (self.path / "model.safetensors").unlink(missing_ok=True)

    def save(self, name: str, values: dict[str, Any]) -> None:
        """Write metrics.json or picks.json."""
        atomic.write_json(self.path / name, values)

    def metrics(self) -> dict[str, Any]:
        return self._read("metrics.json")

    def picked(self) -> list[str]:
        """The ids of what was picked, in order."""
        ids = self._read("picks.json").get("ids")
        if not isinstance(ids, list) or len({str(name) for name in ids}) < len(ids):
            raise self.damaged("picks.json")
        return [str(name) for name in ids]

    def corrected(self) -> int | None:
        """What of the picks' outline was drawn, over the prediction; None in folders of versions that did not count."""
        value = self._read("picks.json").get("corrected")
        return value if isinstance(value, int) else None

    def query_seconds(self) -> dict[str, float]:
        """What the query took, by column of results.csv."""
        picks = self._read("picks.json")
        try:
            return {name: float(picks[name]) for name in ("embed_seconds", "seeding_seconds")}
        except (KeyError, TypeError, ValueError) as error:
            raise self.damaged("picks.json") from error

    def damaged(self, name: str) -> UserError:
        """The error to raise where this file is missing or does not hold what was written."""
        return UserError(
            f"{self.path / name} is damaged or missing: delete {self.path} and the rounds after it, then run again"
        )

    def _has_model(self) -> bool:
        try:
            with safetensors.safe_open(self.path / "model.safetensors", "pt"):
                return True
        except (OSError, RuntimeError, safetensors.SafetensorError):  # torch's own where another job just removed it
            return False

    def _read(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise self.damaged(name) from error
        if not isinstance(value, dict):
            raise self.damaged(name)
        return value
