#!/usr/bin/env python3
"""Compares a GPU with the CPU over the whole service: quantizes a model on the CPU by several recipes, then serves the same packed
models from a server with --device cpu and from one with --device cuda, and sets perplexity and greedy texts of the two side by side.
Run by hand on a machine with a GPU.

  device_check.py --model FILE_OR_DIR --text wiki.test.raw --calibration wiki.train.txt [--run babai:bits=4,group_size=64 ...]

Perplexities are of decoded weights on the CPU and of the serving kernels, with fp16 activations, on the GPU. Greedy texts are what each
serves: on the CPU packed weights meet 8-bit activations, so where two tokens are all but level they may part, and the rest of that text
differs. What must hold is that, as long as texts agree, their tokens are as likely on both. Fails when a perplexity is farther apart than
--tolerance, or when those log-probabilities are, on average, by more than --logprob_tolerance.
"""
import argparse
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench"))
from local_server import LocalServer
from quality_runs import parse_runs

RUNS = ["dense", "rtn:bits=4", "babai:bits=8", "babai:bits=4", "babai:bits=3", "babai:bits=2", "gptqt:bits=3", "nf4:bits=4", "pot:bits=4",
        "squeezellm:bits=3", "ssqr:bits=3", "quip:bits=3", "hptq:target_bits=3.125", "watersic:target_bits=3.125",
        "best:target_bits=3.125"]
PROMPTS = ["The capital of France is", "Once upon a time, there was a little girl who", "def fibonacci(n):", "Water boils at",
           "The three primary colours are", "Dear Sir or Madam,", "The mitochondria is", "1, 1, 2, 3, 5, 8,",
           "To make a good cup of coffee,", "List of fruits:\n- apple\n-"]


def quantize(server, run, name, arguments, scratch):
    recipe = scratch / f"{name}.json"
    recipe.write_text(json.dumps(run.recipe({} if run.preset == "dense" else {"group_size": arguments.group_size})), encoding="utf-8")
    server.babai("quantize", f"file://{arguments.model}", "--name", name, "--recipe_json", recipe, "--calibration", arguments.calibration,
                 "--samples", arguments.samples, "--length", arguments.length, "--wait")


def measure(server, name, arguments):
    """Perplexity, greedy texts, and what the last of them ran at."""
    perplexity = server.babai("evaluate", name, "--text", arguments.text, "--context", arguments.context,
                              "--max_windows", arguments.windows)["perplexity"]
    answers = [server.babai("generate", name, prompt, "--max_tokens", arguments.tokens, "--temperature", 0, "--logprobs")
               for prompt in PROMPTS]
    server.babai("models", "unload", name)
    return perplexity, answers


def compare(answers, others):
    """How many texts are equal; tokens before the first difference, a text; how far apart those tokens' log-probabilities are."""
    equal = common = 0
    apart = []
    for one, other in zip(answers, others):
        equal += one["token_ids"] == other["token_ids"]
        for token, other_token, logprob, other_logprob in zip(one["token_ids"], other["token_ids"], one["logprobs"], other["logprobs"]):
            apart.append(abs(logprob - other_logprob))  # where they part, each is its side's likeliest: as good a measure
            if token != other_token:
                break
            common += 1
    return equal, common / len(answers), sum(apart) / len(apart), max(apart)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("--text", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--run", action="append", help="preset[:key=value,...]; default: one of each kind of format")
    parser.add_argument("--bin", help="folder of babai-server and babai (default build/release/bin)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--group_size", type=int, default=0)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--tolerance", type=float, default=2e-3)
    parser.add_argument("--logprob_tolerance", type=float, default=0.1)
    arguments = parser.parse_args()
    runs = parse_runs(arguments.run or RUNS)
    results = {}
    with tempfile.TemporaryDirectory(prefix="babai-device-check-") as folder:
        scratch = pathlib.Path(folder)
        for device in ("cpu", "cuda"):
            with LocalServer(arguments.bin, [arguments.model.parent], arguments.threads, scratch / "server", ("--device", device)) as server:
                for number, run in enumerate(runs):
                    if device == "cpu":
                        quantize(server, run, f"m{number}", arguments, scratch)
                    results[device, number] = measure(server, f"m{number}", arguments)
    failed = 0
    print(f"{'run':32} {'ppl, CPU':>10} {'ppl, GPU':>10} {'apart':>8} {'texts equal':>12} {'common tokens':>14} {'their logprobs apart, mean, most':>33} {'tok/s, GPU':>11}")
    for number, run in enumerate(runs):
        (ppl, answers), (gpu_ppl, gpu_answers) = results["cpu", number], results["cuda", number]
        apart, (equal, common, mean, most) = abs(gpu_ppl / ppl - 1), compare(answers, gpu_answers)
        bad = apart > arguments.tolerance or mean > arguments.logprob_tolerance
        failed += bad
        print(f"{run.label:32} {ppl:10.4f} {gpu_ppl:10.4f} {apart:8.1e} {equal:6} of {len(PROMPTS)} {common:14.1f} {mean:24.4f} {most:8.4f} "
              f"{gpu_answers[-1]['tokens_per_second']:11.0f}{'  FAILED' * bad}")
    raise SystemExit(failed > 0)


main()
