"""Writes a tiny random Llama as a Hugging Face directory: weights from a seed, a byte-level tokenizer
that can spell everything, a ChatML template. Needs numpy only."""
import json
import pathlib
import struct

import numpy as np

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, CONTEXT = 64, 128, 3, 4, 2, 256
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def byte_alphabet():
    """GPT-2's map of bytes to printable characters, in byte order."""
    keep = list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    chars, extra = {}, 0
    for byte in range(256):
        if byte in keep:
            chars[byte] = chr(byte)
        else:
            chars[byte] = chr(0x100 + extra)
            extra += 1
    return [chars[byte] for byte in range(256)]


def tokenizer_json():
    vocab = {char: index for index, char in enumerate(byte_alphabet())}
    added = [{"id": 256 + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for i, text in enumerate(SPECIALS)]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": []}}


def config():
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "vocab_size": 256 + len(SPECIALS), "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
            "attention_bias": False, "mlp_bias": False, "bos_token_id": 256, "eos_token_id": 258,
            "torch_dtype": "float32"}


def tensors(seed=1):
    rng = np.random.default_rng(seed)
    vocab, head = 256 + len(SPECIALS), HIDDEN // HEADS

    def weight(rows, cols):
        return (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)

    def norm():
        return (1 + 0.1 * rng.standard_normal(HIDDEN)).astype(np.float32)

    out = {"model.embed_tokens.weight": rng.standard_normal((vocab, HIDDEN)).astype(np.float32)}
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        out[p + "input_layernorm.weight"] = norm()
        out[p + "self_attn.q_proj.weight"] = weight(HEADS * head, HIDDEN)
        out[p + "self_attn.k_proj.weight"] = weight(KV_HEADS * head, HIDDEN)
        out[p + "self_attn.v_proj.weight"] = weight(KV_HEADS * head, HIDDEN)
        out[p + "self_attn.o_proj.weight"] = weight(HIDDEN, HEADS * head)
        out[p + "post_attention_layernorm.weight"] = norm()
        out[p + "mlp.gate_proj.weight"] = weight(INTERMEDIATE, HIDDEN)
        out[p + "mlp.up_proj.weight"] = weight(INTERMEDIATE, HIDDEN)
        out[p + "mlp.down_proj.weight"] = weight(HIDDEN, INTERMEDIATE)
    out["model.norm.weight"] = norm()
    out["lm_head.weight"] = weight(vocab, HIDDEN)
    return out


def safetensors_header(arrays):
    """The header object of the arrays laid out one after another."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    return header


def write_safetensors(path, arrays, header=None):
    text = json.dumps(header or safetensors_header(arrays)).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(array.tobytes())


def write_model(directory, seed=1, arrays=None, header=None, config_changes=None):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**config(), **(config_changes or {})}))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    (directory / "tokenizer_config.json").write_text(json.dumps(
        {"chat_template": CHAT_TEMPLATE, "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}))
    write_safetensors(directory / "model.safetensors", tensors(seed) if arrays is None else arrays, header)
    return directory
