"""Why a network cannot be trained. The command that asked for it knows which of its flags mends that."""

from __future__ import annotations


class TooFewLabels(Exception):
    """What is labelled is not enough to train on."""


class Diverged(Exception):
    """The loss is not finite: the learning rate is too high, or the inputs are not finite."""
