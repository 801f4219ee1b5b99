# /// script
# requires-python = ">=3.11"
# dependencies = ["grpcio-tools==1.71.2"]
# ///
"""A buf plugin: messages (`_pb2.py`) and services (`_pb2_grpc.py`), by the protoc inside grpcio-tools.

The generator is of 2025 on purpose: its stubs run on every protobuf since 5.29 and every grpcio since
1.71.2, while those of today's generator demand today's libraries of each caller. It has an environment
of its own because it pins a protobuf older than the server's.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc


def generate(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    response = CodeGeneratorResponse(supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL)
    with TemporaryDirectory() as folder:
        descriptors = Path(folder, "descriptors.bin")
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        out = Path(folder, "out")
        out.mkdir()
        options = [f"--descriptor_set_in={descriptors}", f"--python_out={out}", f"--grpc_python_out={out}"]
        if protoc.main(["protoc", *options, *request.file_to_generate]) != 0:
            sys.exit("protoc failed: its message is above")
        for path in sorted(out.rglob("*.py")):
            response.file.add(name=path.relative_to(out).as_posix(), content=path.read_text(encoding="utf-8"))
    return response


if __name__ == "__main__":
    answer = generate(CodeGeneratorRequest.FromString(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(answer.SerializeToString())
