"""What turns image files into features on their grid: raw patches, a vision tower, a whole model."""
