#!/usr/bin/env python3
"""Turns a llama2.c model (version-0 file and its tokenizer.bin) into a Hugging Face directory. Needs numpy only.

  export_llama2c.py stories260K.bin tok512.bin DIRECTORY

The file: 7 little-endian int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len; a negative
vocab_size means an output layer of its own), then fp32 arrays, each for all layers. Its RoPE pairs neighbours
(2i, 2i + 1); Hugging Face's pairs (i, i + head / 2), so the rows of q and k move.
"""
import argparse
import json
import pathlib
import struct

import numpy as np

import tiny_model

UNK, BOS, EOS, FIRST_BYTE, FIRST_PIECE = 0, 1, 2, 3, 259
SPACE = "\u2581"


class Model:
    """The header's numbers and the arrays under their Hugging Face names."""

    def __init__(self, path):
        self.data = np.fromfile(path, dtype="<f4", offset=28)
        header = np.fromfile(path, dtype="<i4", count=7)
        self.dim, self.hidden, self.layers, self.heads, self.kv_heads, vocab, self.context = map(int, header)
        self.tied, self.vocab = vocab > 0, abs(vocab)
        self.head = self.dim // self.heads
        self.at = 0
        self.tensors = self.read_tensors()
        if self.at != self.data.size:
            raise ValueError(f"{path}: {self.data.size} numbers, the header asks for {self.at}")

    def take(self, *shape):
        count = int(np.prod(shape))
        self.at += count
        return self.data[self.at - count:self.at].reshape(shape)

    def half_split(self, rows):
        return rows.reshape(-1, self.head // 2, 2, self.dim).swapaxes(1, 2).reshape(rows.shape)

    def read_tensors(self):
        dim, layers, kv = self.dim, self.layers, self.kv_heads * self.head
        embedding = self.take(self.vocab, dim)
        arrays = {  # in the file's order
            "input_layernorm": self.take(layers, dim),
            "self_attn.q_proj": self.take(layers, dim, dim),
            "self_attn.k_proj": self.take(layers, kv, dim),
            "self_attn.v_proj": self.take(layers, kv, dim),
            "self_attn.o_proj": self.take(layers, dim, dim),
            "post_attention_layernorm": self.take(layers, dim),
            "mlp.gate_proj": self.take(layers, self.hidden, dim),
            "mlp.down_proj": self.take(layers, dim, self.hidden),
            "mlp.up_proj": self.take(layers, self.hidden, dim),
        }
        out = {"model.embed_tokens.weight": embedding}
        for layer in range(layers):
            for name, array in arrays.items():
                rows = array[layer]
                if name in ("self_attn.q_proj", "self_attn.k_proj"):
                    rows = self.half_split(rows)
                out[f"model.layers.{layer}.{name}.weight"] = rows
        out["model.norm.weight"] = self.take(dim)
        self.take(2, self.context, self.head // 2)  # RoPE tables, computed by everyone else
        if not self.tied:
            out["lm_head.weight"] = self.take(self.vocab, dim)
        return {name: np.ascontiguousarray(array) for name, array in out.items()}

    def config(self):
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.dim,
                "intermediate_size": self.hidden, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads, "vocab_size": self.vocab, "max_position_embeddings": self.context,
                "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": self.tied,
                "bos_token_id": BOS, "eos_token_id": EOS, "torch_dtype": "float32"}


def read_pieces(path):
    """(text, score) by id; control and byte pieces get their usual spellings."""
    data, at, pieces = pathlib.Path(path).read_bytes(), 4, []
    while at < len(data):
        score, size = struct.unpack_from("<fi", data, at)
        text = data[at + 8:at + 8 + size].decode()
        at += 8 + size
        special = ["<unk>", "<s>", "</s>"][len(pieces)] if len(pieces) < FIRST_BYTE else None
        pieces.append((special or (text if len(pieces) < FIRST_PIECE else text.replace(" ", SPACE)), score))
    return pieces


def merges(pieces):
    """Every way to make a piece of two others; SentencePiece merges the best-scored result first."""
    ids = {text: i for i, (text, _) in enumerate(pieces) if i >= FIRST_PIECE}
    found = []
    for text, result in ids.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                found.append((-pieces[result][1], result, ids[left], ids[right], left, right))
    return [f"{left} {right}" for *_, left, right in sorted(found)]


def tokenizer(pieces):
    special = [{"id": i, "content": pieces[i][0], "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for i in (UNK, BOS, EOS)]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": [bos, text[0]],
                           "pair": [bos, text[0], {"SpecialToken": {"id": "<s>", "type_id": 1}}, text[1]],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {text: i for i, (text, _) in enumerate(pieces)}, "merges": merges(pieces)},
    }


def export(model_path, tokenizer_path, directory):
    model, pieces = Model(model_path), read_pieces(tokenizer_path)
    if len(pieces) != model.vocab:
        raise ValueError(f"{tokenizer_path}: {len(pieces)} pieces, the model has {model.vocab}")
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tiny_model.write_safetensors(directory / "model.safetensors", model.tensors)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
                "unk_token": "<unk>", "add_bos_token": True}
    for name, content in (("config", model.config()), ("tokenizer", tokenizer(pieces)), ("tokenizer_config", settings)):
        (directory / f"{name}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokenizer")
    parser.add_argument("directory")
    arguments = parser.parse_args()
    export(arguments.model, arguments.tokenizer, arguments.directory)
