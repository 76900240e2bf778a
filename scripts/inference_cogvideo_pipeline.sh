#!/usr/bin/env bash
# The release's command: sentences typed or from a file, a film for each. Words given here come after the usual ones and
# overrule them:  scripts/inference_cogvideo_pipeline.sh --input-source examples/prompts.txt --model mini
set -euo pipefail
exec "${PYTHON:-python}" -m cogvideo generate \
    --input-source interactive \
    --output-path ./output \
    --batch-size 1 \
    --max-inference-batch-size 8 \
    --stage1-max-inference-batch-size 1 \
    --both-stages \
    --use-guidance-stage1 \
    --guidance-alpha 3.0 \
    --seed 1234 \
    "$@"
