#!/usr/bin/env python3
"""The main job through reflection alone: grpcurl knows none of the protos. Skipped where grpcurl is not installed
(in PATH, or named by the environment variable GRPCURL)."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

import tiny_model
from service import Service

BINARY = sys.argv.pop(1)
GRPCURL = shutil.which(os.environ.get("GRPCURL", "grpcurl"))


def messages(text):
    """The JSON objects that grpcurl printed one after another."""
    decoder, out, text = json.JSONDecoder(), [], text.strip()
    while text:
        message, end = decoder.raw_decode(text)
        out.append(message)
        text = text[end:].lstrip()
    return out


@unittest.skipUnless(GRPCURL, "grpcurl is not installed")
class GrpcurlTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temp = tempfile.TemporaryDirectory(prefix="babai-test-")
        root = pathlib.Path(cls.temp.name)
        cls.source = {"source_uri": f"file://{tiny_model.write_model(root / 'tiny')}"}
        cls.service = Service(BINARY, [root])

    @classmethod
    def tearDownClass(cls):
        cls.service.close()
        cls.temp.cleanup()

    def grpcurl(self, *words, request=None):
        data = [] if request is None else ["-d", json.dumps(request)]
        return subprocess.run([GRPCURL, "-plaintext", "-max-time", "120", *data, self.service.address, *words],
                              capture_output=True, text=True, check=False)

    def call(self, method, **request):
        run = self.grpcurl(method, request=request)
        self.assertEqual(run.returncode, 0, run.stderr)
        return messages(run.stdout)

    def quantize(self, name, samples):
        calibration = {"self": {}, "samples": samples, "length": 64}
        [operation] = self.call("babai.v1.QuantizationService/Quantize", **self.source, name=name,
                                recipe={"preset": "babai", "bits": 4, "group_size": 32}, calibration=calibration)
        return operation["name"]

    def test_lists_and_describes_the_services(self):
        self.assertIn("babai.v1.QuantizationService", self.grpcurl("list").stdout.split())
        described = self.grpcurl("describe", "babai.v1.QuantizationService").stdout
        for method in ("Quantize", "WatchQuantization", "EstimateQuantization"):
            self.assertIn(f"rpc {method} ", described)

    def test_submits_watches_and_generates(self):
        job = self.quantize("by-grpcurl", samples=8)
        watched = self.call("babai.v1.QuantizationService/WatchQuantization", name=job)
        self.assertTrue(watched[-1]["done"])
        [operation] = self.call("google.longrunning.Operations/GetOperation", name=job)
        self.assertEqual(operation["response"]["name"], "by-grpcurl")
        events = self.call("babai.v1.GenerationService/Generate", model="by-grpcurl", text="once",
                           sampling={"temperature": 0}, stopping={"max_tokens": 6, "ignore_eos": True})
        deltas = [event["delta"] for event in events if "delta" in event]
        ids = [i for delta in deltas for i in delta.get("token_ids") or delta["tokenIds"]]  # by grpcurl's version
        self.assertEqual(len(ids), 6)

    def test_cancels(self):
        job = self.quantize("cancelled", samples=4096)
        self.call("google.longrunning.Operations/CancelOperation", name=job)
        [operation] = self.call("google.longrunning.Operations/WaitOperation", name=job, timeout="60s")
        self.assertEqual(operation["error"]["code"], 1)  # CANCELLED
        self.assertNotEqual(self.grpcurl("babai.v1.ModelService/GetModel", request={"name": "cancelled"}).returncode, 0)

    def test_a_refusal_names_reason_and_field(self):
        run = self.grpcurl("babai.v1.QuantizationService/Quantize",
                           request={**self.source, "name": "bad", "recipe": {"preset": "rtn", "bits": 9}})
        self.assertNotEqual(run.returncode, 0)
        for word in ("InvalidArgument", "recipe.bits", "INVALID_FIELD"):
            self.assertIn(word, run.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
