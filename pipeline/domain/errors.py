"""Errors of the core, by whose fault they are."""


class TreewireError(Exception):
    """Base of every error that treewire raises on purpose."""


class GapError(TreewireError):
    """A delta does not continue what the replica holds: ask for everything since its version."""


class HashMismatchError(TreewireError):
    """The replica's state is not the one whose hash was announced: ask for a whole image."""
