#!/usr/bin/env python3
"""Compares a dense model served by babai with Hugging Face transformers on the same files: greedy text for
20 prompts, token by token, and with --text the perplexity of the same windows. Run by hand; needs a Python
with torch and transformers.

  oracle_check.py --babai build/release/bin/babai --server ADDR --model NAME --source DIR_OR_GGUF [--tokens 32]
                  [--text FILE [--context 1024] [--max_windows 20] [--tolerance 0.001]]

Prompts and text are given as babai's token ids, so that only the forward pass is judged. A served sequence keeps its
keys and values as fp16, so the oracle does in the greedy part; an evaluation keeps fp32. Where the texts part, the
oracle's gap between its two best logits is printed: a gap near 0 is a tie that rounding decides.
"""
import argparse
import json
import math
import os
import subprocess
import tempfile

import torch
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PROMPTS = [
    "The capital of France is", "Once upon a time, there was a little girl who", "def fibonacci(n):", "Water boils at",
    "In 1969, the first man", "The three primary colours are", "Dear Sir or Madam,", "import numpy as np\n",
    "The mitochondria is", "Shakespeare wrote", "1, 1, 2, 3, 5, 8,", "Die Hauptstadt von Deutschland ist",
    "To make a good cup of coffee,", "The quick brown fox", "Q: What is 12 * 12?\nA:", "She opened the door and",
    "The theory of relativity", "List of fruits:\n- apple\n-", "My favourite book is", "At the end of the day,"]


def half_kv(module, query, key, value, *rest, **options):
    """Attention over keys and values kept as fp16, as a served sequence has them."""
    return sdpa_attention_forward(module, query, key.half().float(), value.half().float(), *rest, **options)


class Babai:
    def __init__(self, arguments, directory):
        self.command = [arguments.babai, "--server", arguments.server, "--json"]
        self.model, self.scratch = arguments.model, os.path.join(directory, "scratch.txt")

    def __call__(self, verb, *options):
        return json.loads(subprocess.run([*self.command, verb, self.model, *map(str, options)],
                                         check=True, capture_output=True, text=True).stdout)

    def write(self, text):
        with open(self.scratch, "w", encoding="utf-8") as file:
            file.write(text)
        return self.scratch

    def tokenize(self, text, *options):
        return self("tokenize", "--text", self.write(text), *options)["token_ids"]


def greedy_equal(babai, oracle, prompt, tokens):
    ids = babai.tokenize(prompt)
    ours = babai("generate", "--ids", ",".join(map(str, ids)), "--max_tokens", tokens, "--temperature", 0, "--ignore_eos")["token_ids"]
    theirs = []
    while len(theirs) < len(ours):
        logits = oracle(torch.tensor([ids + theirs]), use_cache=False).logits[0, -1]
        theirs.append(int(logits.argmax()))
        if theirs[-1] != ours[len(theirs) - 1]:
            best = logits.topk(2).values
            print(f"differs at token {len(theirs) - 1} (gap {float(best[0] - best[1]):.2e}): {prompt!r}")
            return False
    return True


def oracle_perplexity(oracle, windows, bos):
    """Every window a fresh context that begins with the model's BOS where its tokenizer adds one."""
    nll = count = 0
    for window in windows:
        inputs = torch.tensor([bos + window[len(bos):]])
        log_p = oracle(inputs, use_cache=False).logits[0, :-1].log_softmax(-1)
        nll -= log_p.gather(1, torch.tensor(window[1:])[:, None]).double().sum().item()
        count += len(window) - 1
    return math.exp(nll / count), count


def perplexity_equal(babai, oracle, arguments):
    with open(arguments.text, encoding="utf-8", newline="") as file:
        ids = babai.tokenize(file.read(), "--no_special")
    bos = babai.tokenize("")  # what the tokenizer adds to nothing
    size = arguments.context
    windows = [ids[i:i + size] for i in range(0, len(ids) - size + 1, size)][:arguments.max_windows]
    ours = babai("evaluate", "--ids", babai.write(",".join(str(i) for window in windows for i in window)), "--context", size)
    theirs, count = oracle_perplexity(oracle, windows, bos)
    apart = abs(ours["perplexity"] / theirs - 1)
    print(f"perplexity {ours['perplexity']:.6f} here, {theirs:.6f} there ({apart:.2e} apart) over {count} predictions")
    return ours["tokens"] == count and apart <= arguments.tolerance


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("babai", "server", "model", "source"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--text")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--max_windows", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=1e-3, help="allowed relative difference of the perplexities")
    arguments = parser.parse_args()
    directory, extra = arguments.source, {}
    if arguments.source.endswith(".gguf"):
        directory, extra = os.path.dirname(os.path.abspath(arguments.source)), {"gguf_file": os.path.basename(arguments.source)}
    oracle = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **extra).eval()
    with tempfile.TemporaryDirectory() as scratch:
        babai = Babai(arguments, scratch)
        AttentionInterface.register("half_kv", half_kv)
        oracle.set_attn_implementation("half_kv")
        equal = sum(greedy_equal(babai, oracle, prompt, arguments.tokens) for prompt in PROMPTS)
        print(f"{equal} of {len(PROMPTS)} prompts equal over {arguments.tokens} greedy tokens")
        oracle.set_attn_implementation("sdpa")
        close = not arguments.text or perplexity_equal(babai, oracle, arguments)
    raise SystemExit(equal != len(PROMPTS) or not close)


main()
