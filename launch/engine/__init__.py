"""Running: programs, the loop, placement on devices, units of work, processes."""
