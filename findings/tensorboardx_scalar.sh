#!/usr/bin/env bash
# tensorboardX 2.6 with numpy 2.4.6 and protobuf 3.20.3, Python 3.11.
# SummaryWriter.add_scalar with a plain Python float, its documented use, ends in a TypeError: it makes an array of one
# dimension and converts that by float(), which numpy 2.4.6 refuses. A 0-dimensional array is accepted.
# tensorboardX 2.6.5 accepts the float.
# Output seen:
#   2.6: TypeError: only 0-dimensional arrays can be converted to Python scalars
#   2.6.5: written
# Exit status 0: this is still so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"

cat > "$folder/scalar.py" <<'PROGRAM'
import sys
import tempfile

import tensorboardX

try:
    tensorboardX.SummaryWriter(tempfile.mkdtemp(dir=sys.argv[1])).add_scalar("loss", 0.5, 1)
    print(f"{sys.argv[2]}: written")
except TypeError as error:
    print(f"{sys.argv[2]}: TypeError: {error}")
PROGRAM

for version in 2.6 2.6.5; do
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
        "tensorboardX==$version" numpy==2.4.6 protobuf==3.20.3 packaging==24.2
    "$folder/venv/bin/python" "$folder/scalar.py" "$folder" "$version"
done | tee "$folder/output"
diff - "$folder/output" <<'EXPECTED'
2.6: TypeError: only 0-dimensional arrays can be converted to Python scalars
2.6.5: written
EXPECTED
