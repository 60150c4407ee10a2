"""What a run leaves on disk: its folder, checkpoints, tables and event files."""
