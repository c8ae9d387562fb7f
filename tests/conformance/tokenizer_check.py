#!/usr/bin/env python3
"""Compares babai's tokenizer with llama.cpp's on the vocabulary of one GGUF. Run by hand; needs llama-cpp-python.

  tokenizer_check.py --babai build/release/bin/babai --server ADDR --model NAME --gguf FILE TEXT...

The texts are cut in chunks of about 2000 characters at line ends; every chunk's ids must be equal.
"""
import argparse
import json
import os
import subprocess
import tempfile

from llama_cpp import Llama


def chunks(text, size=2000):
    out, part = [], ""
    for line in text.splitlines(keepends=True):
        part += line
        if len(part) >= size:
            out.append(part)
            part = ""
    return out + ([part] if part else [])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("babai", "server", "model", "gguf"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--limit", type=int, default=2 << 20, help="bytes of text in all")
    parser.add_argument("texts", nargs="+")
    arguments = parser.parse_args()
    llama = Llama(arguments.gguf, vocab_only=True, verbose=False)
    share = arguments.limit // len(arguments.texts)
    pieces = [c for path in arguments.texts
              for c in chunks(open(path, "rb").read()[:share].decode("utf-8", errors="ignore"))]
    differ = tokens = 0
    with tempfile.TemporaryDirectory() as directory:
        for i, piece in enumerate(pieces):
            path = os.path.join(directory, "piece.txt")
            with open(path, "wb") as file:
                file.write(piece.encode())
            ours = json.loads(subprocess.run(
                [arguments.babai, "--server", arguments.server, "--json", "tokenize", arguments.model, "--text", path],
                check=True, capture_output=True).stdout)["token_ids"]
            theirs = llama.tokenize(piece.encode(), add_bos=False, special=False)
            tokens += len(theirs)
            if ours != theirs:
                differ += 1
                print(f"chunk {i} differs: {piece[:80]!r}")
    print(f"{len(pieces)} chunks, {sum(len(p.encode()) for p in pieces)} bytes, {tokens} tokens, {differ} differences")
    raise SystemExit(differ != 0)


main()
