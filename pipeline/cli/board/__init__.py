"""The board in a terminal: what `treewire watch` opens where there is one."""
