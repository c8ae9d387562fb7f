#!/usr/bin/env python3
"""Bad inputs over the wire: each gets its canonical code, reason and field, leaves nothing half-written,
and the server goes on serving."""
import json
import math
import pathlib
import struct
import sys
import tempfile
import unittest

import grpc
import numpy as np

import tiny_model
from service import Service, error_reason

BINARY = sys.argv.pop(1)


def raw_safetensors(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def gguf(path, kv_count=0, tensor_count=0, body=b"", version=3, magic=b"GGUF"):
    path.write_bytes(magic + struct.pack("<IQQ", version, tensor_count, kv_count) + body)


def gguf_string(text):
    return struct.pack("<Q", len(text)) + text.encode()


class BadModels:
    """Builds one broken model a method name; returns its path."""

    def __init__(self, root):
        self.root = root

    def model(self, name, change):
        arrays = tiny_model.tensors()
        header = tiny_model.safetensors_header(arrays)
        change(arrays, header)
        return tiny_model.write_model(self.root / name, arrays=arrays, header=header)

    def file(self, name, *args, **kwargs):
        path = tiny_model.write_model(self.root / name)
        raw_safetensors(path / "model.safetensors", *args, **kwargs)
        return path

    def truncated(self):
        path = tiny_model.write_model(self.root / "truncated")
        file = path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        return path

    def empty_file(self):
        path = tiny_model.write_model(self.root / "empty_file")
        (path / "model.safetensors").write_bytes(b"")
        return path

    def header_beyond_file(self):
        return self.file("header_beyond_file", {}, length=1 << 40)

    def header_length_2_64(self):
        return self.file("header_length_2_64", {}, length=(1 << 64) - 1)

    def header_not_json(self):
        return self.file("header_not_json", b"{\"a\": ")

    def duplicate_key(self):
        entry = '"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
        return self.file("duplicate_key", ("{" + entry + "," + entry + "}").encode(), b"\0" * 4)

    def overlapping(self):
        def change(_, header):
            a = header["model.layers.0.mlp.gate_proj.weight"]["data_offsets"]
            header["model.layers.0.mlp.up_proj.weight"]["data_offsets"] = list(a)
        return self.model("overlapping", change)

    def offsets_lie(self):
        def change(_, header):
            header["lm_head.weight"]["data_offsets"][1] += 1 << 50
        return self.model("offsets_lie", change)

    def shape_overflows(self):
        def change(_, header):
            header["lm_head.weight"]["shape"] = [1 << 40, 1 << 40]
        return self.model("shape_overflows", change)

    def negative_shape(self):
        def change(_, header):
            header["lm_head.weight"]["shape"] = [-1, 64]
        return self.model("negative_shape", change)

    def missing_tensor(self):
        def change(arrays, header):
            del arrays["model.layers.1.self_attn.k_proj.weight"]
            header.clear()
            header.update(tiny_model.safetensors_header(arrays))
        return self.model("missing_tensor", change)

    def wrong_shape(self):
        def change(arrays, header):
            arrays["model.layers.1.mlp.down_proj.weight"] = arrays["model.layers.1.mlp.down_proj.weight"].T.copy()
            header.update(tiny_model.safetensors_header(arrays))
        return self.model("wrong_shape", change)

    def nan_weight(self):
        def change(arrays, _):
            arrays["model.layers.2.self_attn.o_proj.weight"][3, 5] = np.nan
        return self.model("nan_weight", change)

    def unknown_dtype(self):
        def change(_, header):
            header["lm_head.weight"]["dtype"] = "F7"
        return self.model("unknown_dtype", change)

    def unknown_architecture(self):
        return tiny_model.write_model(self.root / "unknown_architecture",
                                      config_changes={"architectures": ["MambaForCausalLM"], "model_type": "mamba"})

    def absurd_layers(self):
        return tiny_model.write_model(self.root / "absurd_layers", config_changes={"num_hidden_layers": 10**9})

    def heads_do_not_divide(self):
        return tiny_model.write_model(self.root / "heads", config_changes={"num_key_value_heads": 3})

    def config_not_json(self):
        path = tiny_model.write_model(self.root / "config_not_json")
        (path / "config.json").write_text("{")
        return path

    def garbage_tokenizer(self):
        path = tiny_model.write_model(self.root / "garbage_tokenizer")
        (path / "tokenizer.json").write_text('{"model": 5}')
        return path

    def link_out_of_the_root(self):
        path = tiny_model.write_model(self.root / "link_inside")
        outside = self.root.parent / "outside.safetensors"
        (path / "model.safetensors").rename(outside)
        (path / "model.safetensors").symlink_to(outside)
        return path

    def gguf_bad_magic(self):
        gguf(self.root / "magic.gguf", magic=b"GGUX")
        return self.root / "magic.gguf"

    def gguf_counts(self):
        gguf(self.root / "counts.gguf", tensor_count=1 << 60, kv_count=1 << 60)
        return self.root / "counts.gguf"

    def gguf_string_beyond_file(self):
        gguf(self.root / "string.gguf", kv_count=1, body=struct.pack("<Q", 1 << 62) + b"abc")
        return self.root / "string.gguf"

    def gguf_tensor_beyond_file(self):
        body = gguf_string("general.architecture") + struct.pack("<I", 8) + gguf_string("llama")
        body += gguf_string("token_embd.weight") + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0)
        gguf(self.root / "beyond.gguf", kv_count=1, tensor_count=1, body=body)
        return self.root / "beyond.gguf"


MODEL_CASES = [  # builder, code, reason
    ("truncated", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("empty_file", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("header_beyond_file", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("header_length_2_64", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("header_not_json", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("duplicate_key", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("overlapping", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("offsets_lie", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("shape_overflows", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("negative_shape", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("missing_tensor", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("wrong_shape", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("nan_weight", "INVALID_ARGUMENT", "NON_FINITE_WEIGHTS"),
    ("unknown_dtype", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("unknown_architecture", "INVALID_ARGUMENT", "UNSUPPORTED_ARCHITECTURE"),
    ("absurd_layers", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("heads_do_not_divide", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("config_not_json", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("garbage_tokenizer", "INVALID_ARGUMENT", "INVALID_TOKENIZER"),
    ("link_out_of_the_root", "PERMISSION_DENIED", "SOURCE_NOT_ALLOWED"),
    ("gguf_bad_magic", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("gguf_counts", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("gguf_string_beyond_file", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
    ("gguf_tensor_beyond_file", "INVALID_ARGUMENT", "INVALID_MODEL_FILE"),
]


class BadInputsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temp = tempfile.TemporaryDirectory(prefix="babai-test-")
        cls.root = pathlib.Path(cls.temp.name) / "models"
        cls.root.mkdir()
        cls.good = tiny_model.write_model(cls.root / "good")
        cls.service = Service(BINARY, [cls.root])
        operation = cls.service.quantize(f"file://{cls.good}", "good", preset="rtn")
        assert operation.WhichOneof("result") == "response", operation

    @classmethod
    def tearDownClass(cls):
        cls.service.close()
        cls.temp.cleanup()

    def tearDown(self):
        self.assertIsNone(self.service.process.poll(), "the server died:\n" + (
            self.service.log_text() if self.service.process.poll() is not None else ""))
        self.assertEqual(list((self.service.data_dir / "tmp").iterdir()), [], "half-written files stay")
        names = [m.name for m in self.service.models_stub.ListModels(self.service.models.ListModelsRequest()).models]
        self.assertEqual(names, ["good"])
        g = self.service.generation
        result = self.service.generation_stub.GenerateOnce(g.GenerateRequest(
            model="good", text="still here", stopping=g.Stopping(max_tokens=2, ignore_eos=True)))
        self.assertEqual(len(result.token_ids), 2)

    def refused(self, call, code, reason, field=None):
        with self.assertRaises(grpc.RpcError) as caught:
            result = call()
            for _ in result if hasattr(result, "__iter__") else ():
                pass
        got_code, got_reason, got_field, message = error_reason(caught.exception)
        self.assertEqual((got_code, got_reason), (code, reason), message)
        if field is not None:
            self.assertEqual(got_field, field, message)
        self.assertTrue(message)
        self.assertNotIn(str(self.service.data_dir), message, "a message shows a server path")

    def quantize(self, uri=None, name="bad", preset="babai", texts=None, samples=None, length=None, **recipe):
        q = self.service.quantization
        request = q.QuantizeRequest(source_uri=f"file://{self.good}" if uri is None else uri, name=name,
                                    recipe=self.service.common.Recipe(preset=preset, **recipe))
        if texts is not None:
            request.calibration.texts.CopyFrom(q.Calibration.Texts(texts=texts))
        else:
            request.calibration.self.SetInParent()
        request.calibration.samples = samples or 4
        request.calibration.length = length or 32
        return lambda: self.service.quantization_stub.Quantize(request, timeout=30)

    def submit_and_fail(self, call, code, reason):
        """Refused at the door, or accepted and ended with the same error."""
        try:
            operation = call()
        except grpc.RpcError as error:
            self.assertEqual(error_reason(error)[:2], (code, reason), error.details())
            return
        while not operation.done:
            operation = self.service.operation("Get", name=operation.name)
        self.assertEqual(operation.WhichOneof("result"), "error", operation)
        self.assertEqual(grpc.StatusCode.__members__[code].value[0], operation.error.code, operation.error)
        from google.rpc import error_details_pb2
        reasons = []
        for detail in operation.error.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                reasons.append(info.reason)
        self.assertEqual(reasons, [reason], operation.error)

    def test_models(self):
        for builder, code, reason in MODEL_CASES:
            with self.subTest(builder):
                path = getattr(BadModels(self.root), builder)()
                self.submit_and_fail(self.quantize(uri=f"file://{path}"), code, reason)

    def test_uris(self):
        outside = pathlib.Path(self.temp.name) / "outside"
        tiny_model.write_model(outside)
        (self.root / "link").symlink_to(outside)
        for uri, code, reason in [
                ("", "INVALID_ARGUMENT", "INVALID_URI"),
                (f"file://{self.root}/../outside", "INVALID_ARGUMENT", "INVALID_URI"),
                (f"file://{self.root}/%2e%2e/outside", "INVALID_ARGUMENT", "INVALID_URI"),
                (f"file://{outside}", "PERMISSION_DENIED", "SOURCE_NOT_ALLOWED"),
                (f"file://{self.root}/link", "PERMISSION_DENIED", "SOURCE_NOT_ALLOWED"),
                ("file:///etc/passwd", "PERMISSION_DENIED", "SOURCE_NOT_ALLOWED"),
                (f"file://{self.root}/nothing", "NOT_FOUND", "SOURCE_NOT_FOUND"),
                ("file://host/x", "INVALID_ARGUMENT", "INVALID_URI"),
                ("gopher://x", "INVALID_ARGUMENT", "INVALID_URI"),
                ("file:///" + "a" * 5000, "INVALID_ARGUMENT", "INVALID_URI")]:
            with self.subTest(uri[:60]):
                self.refused(self.quantize(uri=uri), code, reason, "source_uri")

    def test_recipes_and_calibration(self):
        for changes, reason, field in [
                (dict(bits=1), "INVALID_FIELD", "recipe.bits"),
                (dict(bits=9), "INVALID_FIELD", "recipe.bits"),
                (dict(group_size=48), "INVALID_FIELD", "recipe.group_size"),
                (dict(group_size=128), None, None),  # does not divide k = 64
                (dict(damping=math.nan), "INVALID_FIELD", "recipe.damping"),
                (dict(damping=-1), "INVALID_FIELD", "recipe.damping"),
                (dict(preset="magic"), "INVALID_FIELD", "recipe.preset"),
                (dict(embedding_bits=5), "INVALID_FIELD", "recipe.embedding_bits"),
                (dict(name="Bad Name"), "INVALID_FIELD", "name"),
                (dict(name="../x"), "INVALID_FIELD", "name"),
                (dict(name=""), "INVALID_FIELD", "name"),
                (dict(texts=[]), None, None),
                (dict(texts=["", ""]), "CALIBRATION_TOO_SMALL", None),
                (dict(texts=["too short"]), "CALIBRATION_TOO_SMALL", None),
                (dict(samples=-3), "INVALID_FIELD", "calibration.samples"),
                (dict(length=100000), None, None)]:
            with self.subTest(str(changes)):
                with self.assertRaises(grpc.RpcError) as caught:
                    self.quantize(**changes)()
                code, got_reason, got_field, message = error_reason(caught.exception)
                self.assertEqual(code, "INVALID_ARGUMENT", message)
                self.assertTrue(got_reason, message)
                if reason:
                    self.assertEqual(got_reason, reason, message)
                if field:
                    self.assertEqual(got_field, field, message)

    def test_generate_fields(self):
        g, common = self.service.generation, self.service.common
        sampling = [("temperature", math.nan), ("temperature", math.inf), ("temperature", -1), ("temperature", 1e30),
                    ("top_p", 0), ("top_p", 1.5), ("top_p", math.nan), ("min_p", -0.1), ("min_p", 2), ("top_k", -1),
                    ("presence_penalty", 3), ("frequency_penalty", math.nan), ("repetition_penalty", 0)]
        for field, value in sampling:
            with self.subTest(f"{field}={value}"):
                request = g.GenerateRequest(model="good", text="x", sampling=g.Sampling(**{field: value}))
                self.refused(lambda: self.service.generation_stub.Generate(request), "INVALID_ARGUMENT", "INVALID_FIELD",
                             f"sampling.{field}")
        for name, request, code, reason in [
                ("negative token", dict(token_ids=common.TokenIds(ids=[1, -5])), "INVALID_ARGUMENT", "INVALID_FIELD"),
                ("token beyond vocabulary", dict(token_ids=common.TokenIds(ids=[100000])), "INVALID_ARGUMENT", "INVALID_FIELD"),
                ("no prompt", dict(), "INVALID_ARGUMENT", "INVALID_FIELD"),
                ("empty prompt", dict(token_ids=common.TokenIds()), "INVALID_ARGUMENT", "INVALID_FIELD"),
                ("prompt beyond context", dict(token_ids=common.TokenIds(ids=[1] * 300)), "INVALID_ARGUMENT", "CONTEXT_TOO_LONG"),
                ("negative max_tokens", dict(text="x", stopping=g.Stopping(max_tokens=-1)), "INVALID_ARGUMENT", "INVALID_FIELD"),
                ("too many stops", dict(text="x", stopping=g.Stopping(stop=["a"] * 17)), "INVALID_ARGUMENT", "INVALID_FIELD"),
                ("long stop", dict(text="x", stopping=g.Stopping(stop=["a" * 65])), "INVALID_ARGUMENT", "INVALID_FIELD"),
                ("grammar", dict(text="x", regex="a+"), "UNIMPLEMENTED", "NOT_IN_THIS_RELEASE"),
                ("unknown model", dict(model="nobody", text="x"), "NOT_FOUND", "MODEL_NOT_FOUND")]:
            with self.subTest(name):
                call = g.GenerateRequest(**{"model": "good", **request})
                self.refused(lambda: self.service.generation_stub.Generate(call), code, reason)

    def test_other_services(self):
        m, t, e = self.service.models, self.service.tokenizer, self.service.evaluation
        self.refused(lambda: self.service.models_stub.GetModel(m.GetModelRequest(name="nobody")), "NOT_FOUND", "MODEL_NOT_FOUND")
        self.refused(lambda: self.service.models_stub.DeleteModel(m.DeleteModelRequest(name="../../etc")), "INVALID_ARGUMENT", "INVALID_FIELD")
        self.refused(lambda: self.service.tokenizer_stub.Tokenize(t.TokenizeRequest(model="nobody", text="x")), "NOT_FOUND", "MODEL_NOT_FOUND")
        self.refused(lambda: self.service.tokenizer_stub.Detokenize(t.DetokenizeRequest(model="good", token_ids=[-1])), "INVALID_ARGUMENT", "INVALID_FIELD")
        self.refused(lambda: self.service.evaluation_stub.Evaluate(e.EvaluateRequest(model="good", text="x", context=1)), "INVALID_ARGUMENT", "INVALID_FIELD")
        self.refused(lambda: self.service.operation("Get", name="operations/nothing"), "NOT_FOUND", "JOB_NOT_FOUND")


if __name__ == "__main__":
    unittest.main(verbosity=2)
