"""The Gradio page, its HTTP routes and its API."""
