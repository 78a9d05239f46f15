"""How the files of a data set lie: one class in one file each. This folder is listed, so a new file is all it takes."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from typing import ClassVar, TypeVar

from alges_fast.data.files import Faults, Listing
from alges_fast.errors import UserError

__all__ = ["LAYOUTS", "Layout", "list_tree", "register_layout"]

L = TypeVar("L", bound="type[Layout]")


class Layout(ABC):
    """A way in which images and masks lie in folders.

    Attributes:
        name: as `--dataset` gives it.
        holds: what lies under the root, a line for each kind of file, for people.
        sign: a pattern (glob) of what lies under such a root and under no other.
        ways_to_split: names that `--split` takes, the default first; none where the folders are the splits.
        names_unlabelled: whether `--ignore_index` says which mask value is not labelled.
    """

    name: ClassVar[str]
    holds: ClassVar[tuple[str, ...]]
    sign: ClassVar[str]
    ways_to_split: ClassVar[tuple[str, ...]] = ()
    names_unlabelled: ClassVar[bool] = False

    @abstractmethod
    def listing(self, root: Path, split: str, ignore_index: int | None, faults: Faults) -> Listing:
        """The frames of each split, and how to read a mask; nothing is decoded here.

        Args:
            root: a folder that is there.
            split: one of `ways_to_split`, or empty where there are none.
            ignore_index: None unless `names_unlabelled`.
            faults: where files go that cannot be used.

        Raises:
            UserError: this is no such tree.
        """


LAYOUTS: dict[str, Layout] = {}


def register_layout(cls: L) -> L:
    """Class decorator: makes a layout known by its name."""
    if cls.name in LAYOUTS:
        raise ValueError(f"layout {cls.name!r} is registered twice")
    LAYOUTS[cls.name] = cls()
    return cls


def list_tree(name: str, root: Path, split: str | None, ignore_index: int | None, faults: Faults) -> Listing:
    """The frames of one of LAYOUTS under root, before any is decoded. Raises UserError."""
    layout = LAYOUTS[name]
    ways = layout.ways_to_split
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: give the folder of the {name} data set")
    if split is not None and not ways:
        raise UserError(f"split {split!r} does not apply to {name}: its folders are its splits; leave it out")
    if split is not None and split not in ways:
        raise UserError(f"split {split!r} is unknown: use one of {', '.join(ways)}")
    if ignore_index is not None and not layout.names_unlabelled:
        raise UserError(f"ignore_index does not apply to {name}, whose masks say what is not labelled: leave it out")
    try:
        return layout.listing(root, split or next(iter(ways), ""), ignore_index, faults)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror}): check its permissions") from None


for _module in sorted(each.name for each in pkgutil.iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")
