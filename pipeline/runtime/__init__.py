"""What every process stands on: settings, clock, log, beat, metrics and the main loop's frame."""
