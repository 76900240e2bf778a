"""From a sentence to a film in ten lines of Python: `python examples/ten_lines.py` from the project's folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project needs no installation, only its folder

from cogvideo import CogVideoPipeline, VideoCompleted, VideoRequest, write_video

pipeline = CogVideoPipeline.from_pretrained("mini")
request = VideoRequest("一只熊猫在草地上向右跑", seed=7, num_frames=9)
for event in pipeline.stream(request):  # loading, then tokens, keyframes, levels, and at the end the film
    print(type(event).__name__, end=" ", flush=True)
    if isinstance(event, VideoCompleted):  # frames: uint8 [9, 192, 192, 3]
        print("\n", write_video(Path("panda.mp4"), event.frames, request.duration), event.frames.shape)
