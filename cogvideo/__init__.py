"""CogVideo for everyone: Chinese text to video, keyframes first, then the frames between them."""

__version__ = "0.1.0"
