#!/usr/bin/env python3
"""Compares a dense model served by babai with Hugging Face transformers on the same files: greedy text for
20 prompts, token by token. Run by hand; needs a Python with torch and transformers.

  oracle_check.py --babai build/release/bin/babai --server ADDR --model NAME --source DIR_OR_GGUF [--tokens 32]

Prompts are given as token ids, so that only the forward pass is judged. Where the texts part, the oracle's gap
between its two best logits is printed: a gap near 0 is a tie that rounding decides.
"""
import argparse
import json
import os
import subprocess

import torch
from transformers import AutoModelForCausalLM

PROMPTS = [
    "The capital of France is", "Once upon a time, there was a little girl who", "def fibonacci(n):", "Water boils at",
    "In 1969, the first man", "The three primary colours are", "Dear Sir or Madam,", "import numpy as np\n",
    "The mitochondria is", "Shakespeare wrote", "1, 1, 2, 3, 5, 8,", "Die Hauptstadt von Deutschland ist",
    "To make a good cup of coffee,", "The quick brown fox", "Q: What is 12 * 12?\nA:", "She opened the door and",
    "The theory of relativity", "List of fruits:\n- apple\n-", "My favourite book is", "At the end of the day,"]


def babai(arguments, *command):
    return json.loads(subprocess.run([arguments.babai, "--server", arguments.server, "--json", *command],
                                     check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("babai", "server", "model", "source"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    directory, extra = arguments.source, {}
    if arguments.source.endswith(".gguf"):
        directory, extra = os.path.dirname(os.path.abspath(arguments.source)), {"gguf_file": os.path.basename(arguments.source)}
    oracle = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **extra).eval()
    equal = 0
    for prompt in PROMPTS:
        with open("/tmp/oracle-prompt.txt", "w", encoding="utf-8") as file:
            file.write(prompt)
        ids = babai(arguments, "tokenize", arguments.model, "--text", "/tmp/oracle-prompt.txt")["token_ids"]
        ours = babai(arguments, "generate", arguments.model, "--ids", ",".join(map(str, ids)), "--max_tokens",
                     str(arguments.tokens), "--temperature", "0", "--ignore_eos")["token_ids"]
        with torch.inference_mode():
            theirs = []
            while len(theirs) < len(ours):
                logits = oracle(torch.tensor([ids + theirs]), use_cache=False).logits[0, -1]
                theirs.append(int(logits.argmax()))
                if theirs[-1] != ours[len(theirs) - 1]:
                    best = logits.topk(2).values
                    print(f"differs at token {len(theirs) - 1} (gap {float(best[0] - best[1]):.2e}): {prompt!r}")
                    break
        equal += theirs == ours
    print(f"{equal} of {len(PROMPTS)} prompts equal over {arguments.tokens} greedy tokens")
    raise SystemExit(equal != len(PROMPTS))


main()
