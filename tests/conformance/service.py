"""Starts a real babai-server and speaks to it with plain grpcio and stubs generated from the protos:
a second implementation of the wire, as a user of another language has it."""
import importlib
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import grpc
from google.longrunning import operations_pb2, operations_pb2_grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def generate_stubs(directory):
    site = pathlib.Path(operations_pb2.__file__).resolve().parents[2]
    # The package ships the .proto under another file name than the one it registers.
    standard = directory / "google/longrunning/operations.proto"
    standard.parent.mkdir(parents=True)
    shutil.copy(site / "google/longrunning/operations_proto.proto", standard)
    protos = sorted((REPOSITORY / "proto/babai/v1").glob("*.proto"))
    arguments = ["protoc", f"-I{REPOSITORY / 'proto'}", f"-I{directory}", f"-I{site}",
                 f"-I{pathlib.Path(protoc.__file__).parent / '_proto'}",
                 f"--python_out={directory}", f"--grpc_python_out={directory}", *map(str, protos)]
    if protoc.main(arguments):
        raise SystemExit("protoc failed on the project's protos")
    sys.path.insert(0, str(directory))


class Service:
    """A server process with a data directory of its own."""

    def __init__(self, binary, roots, data_dir=None, flags=()):
        self.binary, self.roots, self.flags = binary, roots, list(flags)
        self._own = tempfile.TemporaryDirectory(prefix="babai-test-")
        self.data_dir = pathlib.Path(data_dir or self._own.name) / "data"
        stubs = pathlib.Path(self._own.name) / "stubs"
        stubs.mkdir()
        if "babai.v1.common_pb2" not in sys.modules:
            generate_stubs(stubs)
        for name in ("common", "generation", "quantization", "models", "tokenizer", "evaluation"):
            setattr(self, name, importlib.import_module(f"babai.v1.{name}_pb2"))
            if name != "common":
                setattr(self, name + "_grpc", importlib.import_module(f"babai.v1.{name}_pb2_grpc"))
        self.start()

    def start(self):
        self.log = open(pathlib.Path(self._own.name) / "server.log", "a+")
        self.process = subprocess.Popen(
            [self.binary, "--listen", "127.0.0.1:0", "--metrics_listen", "127.0.0.1:0", "--data_dir", str(self.data_dir),
             "--model_roots", ",".join(map(str, self.roots)), *self.flags], stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        match = re.search(r"listen=(\S+).*metrics=(\S+)", line)
        if not match:
            self.process.wait(10)
            raise RuntimeError(f"no ready line but {line!r}; log:\n{self.log_text()}")
        self.address, self.metrics_address = match[1], match[2]
        self.channel = grpc.insecure_channel(self.address, options=[("grpc.max_receive_message_length", 64 << 20)])
        self.models_stub = self.models_grpc.ModelServiceStub(self.channel)
        self.generation_stub = self.generation_grpc.GenerationServiceStub(self.channel)
        self.quantization_stub = self.quantization_grpc.QuantizationServiceStub(self.channel)
        self.tokenizer_stub = self.tokenizer_grpc.TokenizerServiceStub(self.channel)
        self.operations_stub = operations_pb2_grpc.OperationsStub(self.channel)
        self.evaluation_stub = self.evaluation_grpc.EvaluationServiceStub(self.channel)

    def operation(self, method, **fields):
        """A call of google.longrunning.Operations: method is Get, List, Cancel, Wait or Delete."""
        noun = "Operations" if method == "List" else "Operation"
        request = getattr(operations_pb2, f"{method}{noun}Request")(**fields)
        return getattr(self.operations_stub, f"{method}{noun}")(request, timeout=60)

    def log_text(self):
        self.log.flush()
        return pathlib.Path(self.log.name).read_text()[-4000:]

    def stop(self, sig=signal.SIGTERM, timeout=60):
        self.channel.close()
        if self.process.poll() is None:
            self.process.send_signal(sig)
        code = self.process.wait(timeout)
        self.process.stdout.close()
        self.log.close()
        return code

    def close(self):
        if self.process.poll() is None:
            self.stop()
        elif not self.log.closed:  # nobody has stopped it
            print(f"the server ended with {self.process.returncode}; log:\n{self.log_text()}", file=sys.stderr)
        self._own.cleanup()

    def quantize(self, uri, name, preset="babai", wait=120, samples=8, length=64, **recipe):
        """Submits with self-calibration and waits for the end; returns the final Operation."""
        request = self.quantization.QuantizeRequest(
            source_uri=uri, name=name, recipe=self.common.Recipe(preset=preset, **recipe))
        if preset != "dense":
            request.calibration.CopyFrom(self.quantization.Calibration(
                self=self.quantization.Calibration.Self(), samples=samples, length=length))
        operation = self.quantization_stub.Quantize(request, timeout=30)
        deadline = time.monotonic() + wait
        while not operation.done:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{operation.name} is not done")
            operation = self.operation("Get", name=operation.name)
            time.sleep(0.02)
        return operation


def error_reason(error):
    """(code name, ErrorInfo reason, field, message) of a grpc.RpcError."""
    reason = field = ""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    reason, field = info.reason, info.metadata.get("field", "")
    return error.code().name, reason, field, error.details()
