"""Judge the videos of a model, and compare the model with the 2022 release."""
