"""The pure core: no clock, no loop, no socket, no file."""
