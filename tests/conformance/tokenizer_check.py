#!/usr/bin/env python3
"""Compares babai's tokenizer with llama.cpp's on the vocabulary of one GGUF. Run by hand; needs llama-cpp-python.

  tokenizer_check.py --babai build/release/bin/babai --server ADDR --model NAME --gguf FILE TEXT...

The texts are cut in chunks of about 16 KB at line ends; every chunk's ids must be equal. The model is loaded first: the server
reads the tokenizer of a model that is not loaded anew for every call.
"""
import argparse
import json
import os
import subprocess
import tempfile

from llama_cpp import Llama


def chunks(text, size=16_000):
    out, part = [], ""
    for line in text.splitlines(keepends=True):
        part += line
        if len(part) >= size:
            out.append(part)
            part = ""
    return out + ([part] if part else [])


def first_difference(ours, theirs):
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    return f"token {at}: {ours[at:at + 4]} here, {theirs[at:at + 4]} there"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("babai", "server", "model", "gguf"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--limit", type=int, default=2 << 20, help="bytes of each text")
    parser.add_argument("texts", nargs="+")
    arguments = parser.parse_args()

    def babai(*command):
        run = subprocess.run([arguments.babai, "--server", arguments.server, "--json", *command], check=True, capture_output=True)
        return json.loads(run.stdout) if run.stdout else {}

    babai("models", "load", arguments.model)
    llama = Llama(arguments.gguf, vocab_only=True, verbose=False)
    total = {"chunks": 0, "bytes": 0, "tokens": 0, "differences": 0}
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "piece.txt")
        for text in arguments.texts:
            with open(text, "rb") as file:
                pieces = chunks(file.read()[:arguments.limit].decode("utf-8", errors="ignore"))
            found = dict.fromkeys(total, 0)
            for i, piece in enumerate(pieces):
                data = piece.encode()
                with open(path, "wb") as file:
                    file.write(data)
                ours = babai("tokenize", arguments.model, "--text", path, "--no_special")["token_ids"]
                theirs = llama.tokenize(data, add_bos=False, special=False)
                found["chunks"] += 1
                found["bytes"] += len(data)
                found["tokens"] += len(theirs)
                if ours != theirs:
                    found["differences"] += 1
                    print(f"{os.path.basename(text)} chunk {i} differs at {first_difference(ours, theirs)}; begins {piece[:60]!r}")
            print(f"{os.path.basename(text):28}", *(f"{value} {key}" for key, value in found.items()))
            total = {key: total[key] + found[key] for key in total}
    print(f"{'all':28}", *(f"{value} {key}" for key, value in total.items()))
    raise SystemExit(total["differences"] != 0)


main()
