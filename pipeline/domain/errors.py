"""Errors of the core, by whose fault they are."""


class TreewireError(Exception):
    """Base of every error that treewire raises on purpose."""
