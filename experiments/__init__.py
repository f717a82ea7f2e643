"""What a run is: settings to objects, a folder on disk, training with validation, judging."""
