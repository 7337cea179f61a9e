"""``python -m pipeline.cli`` is ``treewire``; supervisord starts the processes by it."""

from pipeline.cli import main

main(prog_name="treewire")
