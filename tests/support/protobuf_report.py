"""Print as JSON what text and training make under the imported protobuf; run by tests/project/test_protobuf.py.

Arguments: an empty folder, then the files of vocabularies to read. A short film is written into the folder.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from cogvideo import compat
from cogvideo.cli.main import main
from cogvideo.tokenizers.text import TextTokenizer
from cogvideo.training.text_tokenizer import train_caption_tokenizer
from tests.support.toy_text import MOTIONS, SCENES, SUBJECTS

PROMPTS = ("一只熊猫在草地上向右跑", "4.0秒<n>高清摄影", "ABC 火箭，𠀀\n", "")


def read(path: Path) -> dict[str, object]:
    """What a vocabulary is after the way through icetk and protobuf."""
    tokenizer = TextTokenizer(path, image_tokens=20000)
    pieces = tokenizer._pieces
    ids = [tokenizer.encode(prompt) for prompt in PROMPTS]
    kinds = [(pieces.sp.IsUnknown(i), pieces.sp.IsControl(i), pieces.sp.GetScore(i)) for i in range(len(pieces))]
    written = pieces.proto.SerializeToString()
    pieces.add_special_tokens(["<added>"])
    return {
        "ids": ids,
        "texts": [tokenizer.decode(one) for one in ids],
        "kinds": hashlib.sha256(repr(kinds).encode()).hexdigest(),
        "unchanged": written == path.read_bytes(),
        "added": tokenizer.token("<added>") - 20000 == len(kinds),
    }


def default_pool_is_free() -> bool:
    """Whether another package can still register SentencePiece's names in protobuf's default pool."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    file = descriptor_pb2.FileDescriptorProto(name="of_another_package.proto", package="sentencepiece")
    file.message_type.add(name="ModelProto")
    try:
        descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    except TypeError:
        return False
    return True


def report(folder: Path, vocabularies: list[Path]) -> dict[str, object]:
    """Raises whatever the product raises."""
    trained = folder / "trained.model"
    train_caption_tokenizer(trained, 90, [f"一只{s}在{p}上{m}" for s in SUBJECTS for p in SCENES for m in MOTIONS])
    film = folder / "film.mp4"
    words = ["--model", "mini", "--device", "cpu", "--seed", "7", "--frames", "5", "--quiet", "--out", str(film)]
    status = main(["generate", PROMPTS[0], *words])
    compat.prepare()  # a second time, with everything imported
    import google.protobuf
    import tensorboardX

    return {
        "protobuf": google.protobuf.__version__,
        "status": status,
        "film": hashlib.sha256(film.read_bytes()).hexdigest(),
        "trained": hashlib.sha256(trained.read_bytes()).hexdigest(),
        "vocabularies": [read(path) for path in [*vocabularies, trained]],
        "default_pool_is_free": default_pool_is_free(),
        "scalars": hasattr(tensorboardX, "SummaryWriter"),
    }


if __name__ == "__main__":
    print(json.dumps(report(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])))
