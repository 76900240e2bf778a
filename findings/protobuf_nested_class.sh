#!/usr/bin/env bash
# protobuf 7.36.2, Python 3.11.
# message_factory.GetMessageClass returns a class with an attribute for each nested message type in the upb
# implementation. In the pure Python implementation the attribute is missing, so code that reads `Outer.Inner` depends
# on PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION. Generated modules have the attribute in both.
# Output seen:
#   upb: Outer.Inner exists: True
#   python: Outer.Inner exists: False
# Exit status 0: this is still so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check protobuf==7.36.2

cat > "$folder/nested.py" <<'PROGRAM'
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal import api_implementation

file = descriptor_pb2.FileDescriptorProto(name="nested.proto", package="example", syntax="proto2")
file.message_type.add(name="Outer").nested_type.add(name="Inner")
pool = descriptor_pool.DescriptorPool()
pool.AddSerializedFile(file.SerializeToString())
outer = message_factory.GetMessageClass(pool.FindMessageTypeByName("example.Outer"))
print(f"{api_implementation.Type()}: Outer.Inner exists: {hasattr(outer, 'Inner')}")
PROGRAM

for implementation in upb python; do
    PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=$implementation "$folder/venv/bin/python" "$folder/nested.py"
done | tee "$folder/output"
diff - "$folder/output" <<'EXPECTED'
upb: Outer.Inner exists: True
python: Outer.Inner exists: False
EXPECTED
