"""The value that every mask of this package has where a pixel is not labelled."""

UNLABELLED = 255
"""Mask value of a pixel that is not labelled: it counts in no loss and no metric."""
