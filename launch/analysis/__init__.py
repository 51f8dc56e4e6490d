"""Numbers from run folders: statistics, by task, by return, by increment, tuning, replacements."""
