"""Tokenizers of text and images, and the checks of prompts."""
