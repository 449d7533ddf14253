"""Data: shards, frame sampling, clips, episodes, LeRobot datasets, feature caches and long videos."""
