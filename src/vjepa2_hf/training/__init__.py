"""Training: settings, run folders, checkpoints, schedules and monitoring."""
