#!/usr/bin/env python3
"""Compares the dense runner with Hugging Face transformers on a tiny random model of every family: logits of random
ids, largest difference over the root mean square. Run by hand; needs a Python with torch and transformers.

  family_logits.py --tool build/release/tests/logits_tool
"""
import argparse
import os
import subprocess
import tempfile

import numpy
import torch
import transformers

SIZES = dict(vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=4.0)


def cases():
    t = transformers
    yield "llama", t.LlamaConfig(**SIZES)
    yield "llama tied, biases", t.LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
    yield "llama 3 rope", t.LlamaConfig(**SIZES, rope_parameters=LLAMA3)
    yield "llama linear rope", t.LlamaConfig(**SIZES, rope_parameters=LINEAR)
    yield "llama yarn", t.LlamaConfig(**SIZES, rope_parameters=YARN)
    yield "mistral, window 20, wide heads", t.MistralConfig(**SIZES, head_dim=32, sliding_window=20)
    yield "qwen2", t.Qwen2Config(**SIZES)
    yield "qwen3", t.Qwen3Config(**SIZES, head_dim=32)
    yield "gpt2", t.GPT2Config(vocab_size=320, n_embd=64, n_layer=3, n_head=4, n_positions=256, bos_token_id=1,
                               eos_token_id=2)
    yield "opt", t.OPTConfig(vocab_size=320, hidden_size=64, ffn_dim=96, num_hidden_layers=3, num_attention_heads=4,
                             max_position_embeddings=256, word_embed_proj_dim=64)
    yield "gemma3, window 20", t.Gemma3TextConfig(**SIZES, head_dim=32, sliding_window=20, query_pre_attn_scalar=24,
                                                  layer_types=["sliding_attention", "full_attention", "sliding_attention"])


def randomize(model):
    """Norm weights and biases too: at their initial ones and zeros, many mistakes do not show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.dim() == 1 else 1.5 * parameter.shape[-1] ** -0.5
            parameter.add_(torch.randn_like(parameter) * scale)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", required=True)
    parser.add_argument("--tokens", type=int, default=150)
    arguments = parser.parse_args()
    worst = 0.0
    for name, config in cases():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        randomize(model)
        ids = torch.randint(3, config.vocab_size, (1, arguments.tokens))
        with torch.inference_mode():
            want = model(ids, use_cache=False).logits[0].numpy()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            ids[0].to(torch.int32).numpy().tofile(os.path.join(folder, "ids"))
            subprocess.run([arguments.tool, "logits", folder, os.path.join(folder, "ids"), os.path.join(folder, "out")],
                           check=True)
            got = numpy.fromfile(os.path.join(folder, "out"), numpy.float32).reshape(want.shape)
        rms = numpy.sqrt((want.astype(float) ** 2).mean())
        error = numpy.abs(got - want).max() / rms
        worst = max(worst, error)
        print(f"{name:32} rms {rms:8.4f}   largest difference / rms {error:.2e}", flush=True)
    raise SystemExit(not worst < 1e-4)


if __name__ == "__main__":
    main()
