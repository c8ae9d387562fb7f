#!/usr/bin/env python3
"""The main job over the wire, by a second gRPC implementation: submit, watch, generate, cancel, restart."""
import pathlib
import re
import signal
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

import grpc
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import tiny_model
from service import Service, error_reason

BINARY = sys.argv.pop(1)


class ServiceTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temp = tempfile.TemporaryDirectory(prefix="babai-test-")
        cls.root = pathlib.Path(cls.temp.name)
        cls.model = tiny_model.write_model(cls.root / "tiny")
        cls.service = Service(BINARY, [cls.root])
        cls.uri = f"file://{cls.model}"
        operation = cls.service.quantize(cls.uri, "w4", bits=4, group_size=32)
        assert operation.WhichOneof("result") == "response", operation
        operation = cls.service.quantize(cls.uri, "dense", preset="dense")
        assert operation.WhichOneof("result") == "response", operation

    @classmethod
    def tearDownClass(cls):
        cls.service.close()
        cls.temp.cleanup()

    def generate(self, model="w4", timeout=60, ids=(1, 2, 3, 4), max_tokens=16, temperature=0.0, **kwargs):
        g, common = self.service.generation, self.service.common
        request = g.GenerateRequest(model=model, token_ids=common.TokenIds(ids=ids),
                                    sampling=g.Sampling(temperature=temperature, **kwargs),
                                    stopping=g.Stopping(max_tokens=max_tokens, ignore_eos=True))
        return self.service.generation_stub.Generate(request, timeout=timeout)

    def tokens(self, **kwargs):
        return [t for event in self.generate(**kwargs) for t in event.delta.token_ids]

    def test_operation_ends_with_a_model_and_its_certificate(self):
        operation = self.service.quantize(self.uri, "report", bits=3, group_size=32)
        model, metadata = self.service.models.Model(), self.service.quantization.QuantizeMetadata()
        self.assertTrue(operation.response.Unpack(model))
        self.assertTrue(operation.metadata.Unpack(metadata))
        self.assertEqual(metadata.state, metadata.STATE_READY)
        self.assertEqual(metadata.fraction, 1.0)
        self.assertEqual(len(metadata.linears), 7 * tiny_model.LAYERS)
        for linear in metadata.linears:
            self.assertGreater(linear.relative_error, 0)
            self.assertLess(linear.relative_error, 0.5)
            self.assertEqual(linear.bits_per_weight, 3.625)  # codes, fp16 scales, 3-bit zeros padded to bytes
        self.assertGreater(model.bits_per_weight, 3)

    def test_every_preset_serves(self):
        info = self.service.models_stub.GetServerInfo(self.service.models.GetServerInfoRequest())
        presets = [recipe.preset for recipe in info.recipes]
        self.assertIn("best", presets)
        for preset in presets:
            with self.subTest(preset=preset):
                name = "any-" + preset
                operation = self.service.quantize(self.uri, name, preset=preset)
                self.assertEqual(operation.WhichOneof("result"), "response", operation)
                self.assertEqual(len(self.tokens(model=name)), 16)

    def test_a_json_recipe_is_a_recipe(self):
        metadata = self.service.quantization.QuantizeMetadata()
        recipe = '{"preset": "babai", "order": "min-pivot", "group_size": 32}'
        operation = self.service.quantize(self.uri, "json", preset="", json=recipe, bits=3)
        self.assertTrue(operation.metadata.Unpack(metadata))
        self.assertEqual(metadata.state, metadata.STATE_READY)
        self.assertEqual(metadata.recipe.order, metadata.recipe.ORDER_MIN_PIVOT)
        self.assertEqual(metadata.recipe.bits, 3)
        with self.assertRaises(grpc.RpcError) as refused:
            self.service.quantize(self.uri, "typo", preset="", json='{"ordr": "natural"}')
        self.assertEqual(refused.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)

    def test_watch_streams_progress_until_done(self):
        q = self.service.quantization
        request = q.QuantizeRequest(source_uri=self.uri, name="watched",
                                    recipe=self.service.common.Recipe(preset="babai"),
                                    calibration=q.Calibration(self=q.Calibration.Self(), samples=8, length=64))
        operation = self.service.quantization_stub.Quantize(request)
        revisions, last = [], None
        for last in self.service.quantization_stub.WatchQuantization(
                q.WatchQuantizationRequest(name=operation.name), timeout=60):
            if not last.heartbeat:
                revisions.append(last.metadata.revision)
        self.assertTrue(last.done)
        self.assertEqual(last.metadata.state, last.metadata.STATE_READY)
        self.assertEqual(revisions, sorted(revisions))
        self.assertEqual(last.metadata.block, tiny_model.LAYERS)

    def test_request_id_makes_a_retry_safe(self):
        q = self.service.quantization
        request = q.QuantizeRequest(request_id="5f0c2f62-9f6b-4b4e-8d42-3a1f6c1f8a01", source_uri=self.uri, name="once",
                                    recipe=self.service.common.Recipe(preset="rtn"))
        first = self.service.quantization_stub.Quantize(request)
        self.assertEqual(self.service.quantization_stub.Quantize(request).name, first.name)
        request.recipe.bits = 3
        with self.assertRaises(grpc.RpcError) as caught:
            self.service.quantization_stub.Quantize(request)
        self.assertEqual(error_reason(caught.exception)[:2], ("ALREADY_EXISTS", "REQUEST_ID_REUSED"))

    def test_generate_streams_info_deltas_and_finish(self):
        events = list(self.generate(max_tokens=12))
        self.assertEqual(events[0].WhichOneof("event"), "prompt_info")
        self.assertEqual(events[-1].WhichOneof("event"), "finish")
        finish = events[-1].finish
        self.assertEqual(finish.reason, self.service.generation.FINISH_REASON_LENGTH)
        self.assertEqual(finish.usage.prompt_tokens, 4)
        self.assertEqual(finish.usage.completion_tokens, 12)
        self.assertEqual(sum(len(e.delta.token_ids) for e in events), 12)

    def test_greedy_text_is_the_same_alone_and_in_a_batch(self):
        prompts = [tuple(range(i, i + 5 + i)) for i in range(1, 9)]
        alone = [self.tokens(ids=p, max_tokens=24) for p in prompts]
        together = [None] * len(prompts)

        def run(i):
            together[i] = self.tokens(ids=prompts[i], max_tokens=24)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(alone, together)

    def test_a_seed_repeats_and_another_differs(self):
        draw = lambda seed: self.tokens(temperature=1.5, seed=seed, max_tokens=32)
        self.assertEqual(draw(7), draw(7))
        self.assertNotEqual(draw(7), draw(8))

    def test_cancel_and_deadline_end_a_stream_and_free_it(self):
        stream = self.generate(max_tokens=200)
        next(stream), next(stream)
        stream.cancel()
        with self.assertRaises(grpc.RpcError):
            list(stream)
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.generate(max_tokens=240, timeout=0.005))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        deadline = time.monotonic() + 10
        while self.service.models_stub.GetModel(self.service.models.GetModelRequest(name="w4")).running:
            self.assertLess(time.monotonic(), deadline, "a cancelled sequence still runs")
            time.sleep(0.02)

    def test_chat_and_stop_strings(self):
        g, common = self.service.generation, self.service.common
        chat = g.ChatPrompt(messages=[common.ChatMessage(role="user", content="hello <|im_end|> there")])
        result = self.service.generation_stub.GenerateOnce(g.GenerateRequest(
            model="dense", chat=chat, sampling=g.Sampling(temperature=0), stopping=g.Stopping(max_tokens=20, ignore_eos=True)))
        self.assertEqual(result.finish.usage.completion_tokens, 20)
        ids = self.service.tokenizer_stub.ApplyChatTemplate(self.service.tokenizer.ApplyChatTemplateRequest(
            model="dense", messages=[common.ChatMessage(role="user", content="hello <|im_end|> there")])).token_ids
        self.assertEqual(list(ids).count(258), 1, "text in a message forged a control token")
        free = self.service.generation_stub.GenerateOnce(g.GenerateRequest(
            model="dense", text="abc", sampling=g.Sampling(temperature=1.0, seed=3),
            stopping=g.Stopping(max_tokens=60, ignore_eos=True)))
        stop = free.text[5:7]
        stopped = self.service.generation_stub.GenerateOnce(g.GenerateRequest(
            model="dense", text="abc", sampling=g.Sampling(temperature=1.0, seed=3),
            stopping=g.Stopping(max_tokens=60, ignore_eos=True, stop=[stop])))
        self.assertEqual(stopped.text, free.text[:free.text.index(stop)])
        self.assertEqual(stopped.finish.matched_stop, stop)

    def test_evaluate_against_itself_and_the_original(self):
        e = self.service.evaluation
        text = "the quick brown fox jumps over the lazy dog. " * 40
        results = []
        for model in ("dense", "w4"):
            operation = self.service.evaluation_stub.Evaluate(e.EvaluateRequest(
                model=model, text=text, context=64, reference="dense"))
            while not operation.done:
                operation = self.service.operation("Get", name=operation.name)
                time.sleep(0.02)
            result = e.EvaluateResult()
            self.assertTrue(operation.response.Unpack(result), operation)
            results.append(result)
        same, packed = results
        self.assertAlmostEqual(same.comparison.mean_kl, 0, delta=1e-9)
        self.assertEqual(same.comparison.top1_agreement, 1)
        self.assertEqual(same.perplexity, same.comparison.reference_perplexity)
        self.assertGreater(packed.comparison.mean_kl, 0)
        self.assertEqual(same.tokens, same.windows * 63)

    def test_cancelled_job_leaves_nothing_behind(self):
        q = self.service.quantization
        request = q.QuantizeRequest(source_uri=self.uri, name="stopped",
                                    recipe=self.service.common.Recipe(preset="babai"),
                                    calibration=q.Calibration(self=q.Calibration.Self(), samples=512, length=250))
        operation = self.service.quantization_stub.Quantize(request)
        self.service.operation("Cancel", name=operation.name)
        while not operation.done:
            operation = self.service.operation("Get", name=operation.name)
            time.sleep(0.02)
        self.assertEqual(operation.error.code, code_pb2.CANCELLED)
        with self.assertRaises(grpc.RpcError) as caught:
            self.service.models_stub.GetModel(self.service.models.GetModelRequest(name="stopped"))
        self.assertEqual(error_reason(caught.exception)[:2], ("NOT_FOUND", "MODEL_NOT_FOUND"))
        self.assertEqual(list((self.service.data_dir / "tmp").iterdir()), [])

    def test_health_and_reflection(self):
        health = health_pb2_grpc.HealthStub(self.service.channel)
        self.assertEqual(health.Check(health_pb2.HealthCheckRequest()).status, health_pb2.HealthCheckResponse.SERVING)
        stub = reflection_pb2_grpc.ServerReflectionStub(self.service.channel)
        reply = next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
        names = {s.name for s in reply.list_services_response.service}
        self.assertLessEqual({"babai.v1.GenerationService", "babai.v1.QuantizationService", "babai.v1.ModelService",
                              "babai.v1.TokenizerService", "babai.v1.EvaluationService", "google.longrunning.Operations",
                              "grpc.health.v1.Health"}, names)
        reply = next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(
            file_containing_symbol="babai.v1.QuantizationService")])))
        self.assertTrue(reply.file_descriptor_response.file_descriptor_proto)

    def test_metrics_page_counts_what_was_served(self):
        def value(name):
            page = urllib.request.urlopen(f"http://{self.service.metrics_address}/metrics", timeout=10).read().decode()
            return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if re.split("[{ ]", line)[0] == name)

        before = value("babai_generation_tokens_total")
        self.tokens(max_tokens=10)
        deadline = time.monotonic() + 10  # counted when the engine has let go of the sequence
        while value("babai_generation_tokens_total") < before + 10 and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(value("babai_generation_tokens_total"), before + 10)
        self.assertGreater(value("babai_time_to_first_token_seconds_count"), 0)
        self.assertGreater(value("babai_model_cache_bytes"), 0)


class RestartTest(unittest.TestCase):
    def test_models_and_jobs_survive_and_an_unfinished_job_starts_again(self):
        with tempfile.TemporaryDirectory(prefix="babai-test-") as temp:
            root = pathlib.Path(temp)
            uri = f"file://{tiny_model.write_model(root / 'tiny')}"
            service = Service(BINARY, [root], data_dir=root)
            try:
                done = service.quantize(uri, "kept", preset="rtn")
                q = service.quantization
                pending = service.quantization_stub.Quantize(q.QuantizeRequest(
                    source_uri=uri, name="pending", recipe=service.common.Recipe(preset="babai"),
                    calibration=q.Calibration(self=q.Calibration.Self(), samples=256, length=250)))
                service.stop(signal.SIGKILL)
                service.start()
                self.assertTrue(service.operation("Get", name=done.name).done)
                names = [m.name for m in service.models_stub.ListModels(service.models.ListModelsRequest()).models]
                self.assertIn("kept", names)
                operation = service.operation("Get", name=pending.name)
                while not operation.done:
                    operation = service.operation("Get", name=pending.name)
                    time.sleep(0.05)
                self.assertEqual(operation.WhichOneof("result"), "response", operation)
                self.assertEqual(service.stop(), 0, "SIGTERM must end in exit code 0")
            finally:
                service.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
