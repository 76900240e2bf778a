"""Training: the synthetic world of `mini`, objectives, the loop, export, the judge. Inference never imports it."""
