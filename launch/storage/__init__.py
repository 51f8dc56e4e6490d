"""On disk: files written whole, checkpoints, run folders, locks."""
