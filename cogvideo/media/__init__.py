"""Video and image files. No model."""
