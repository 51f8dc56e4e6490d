"""What was asked for: experiments, flags, tasks and methods with their settings."""
