"""Text and pixels to token ids and back."""
