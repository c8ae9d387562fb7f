"""Other quantizers in the table of bench/quality: their weights, dequantized, judged by our evaluator on the same token ids.

A peer's row is PEER:key=value[,key=value...]:
  llm-compressor-gptq:bits=3,group=64,asym=true   GPTQ with static activation order; calibrated on the same text, samples and length
  llm-compressor-rtn:bits=3,group=64,asym=true    round to nearest
  llama.cpp:type=Q3_K_M                           a type of llama-quantize, without importance matrix

The folder of programs holds peer_gptq.py HF_DIR OUT_DIR --bits B --group G [--asym] [--rtn] --text FILE --samples S --len L, which writes
the dequantized model and peer.json {"bpw": bits a weight of the linears with fp16 scales and zero points, "seconds"}, and oracle_ppl.py
MODEL --save DIR --save-dtype float32, which turns a GGUF into a Hugging Face folder. They run with the interpreters of the
installation: gptq/bin/python, oracle/bin/python, and llamacpp/bin/llama-quantize.

Bits: llm-compressor's linears as its peer.json says, all else (it stays unquantized) at 16; llama.cpp's as the GGUF file stores its
tensors, the linears being the matrices of the blocks.
"""
import contextlib
import json
import math
import shutil
import struct
import subprocess
import time

from local_server import CommandFailed
from quality_runs import parse_fields

# Bytes of a GGUF's tensors, by their readers' own arithmetic.
COUNT_GGUF = """
import gguf, json, sys
sums = {"linear": [0, 0], "all": [0, 0]}
for t in gguf.GGUFReader(sys.argv[1]).tensors:
    for name in ["all"] + ["linear"] * (t.name.startswith("blk.") and sum(int(d) > 1 for d in t.shape) > 1):
        sums[name][0] += int(t.n_bytes)
        sums[name][1] += int(t.n_elements)
print(json.dumps(sums))
"""


def standard_runs(sizes):
    bits = dict.fromkeys(int(size) for size in sizes)
    return [*(f"llm-compressor-{kind}:bits={b},group=64,asym=true" for b in bits for kind in ("gptq", "rtn")),
            *(f"llama.cpp:type={name}" for name in ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M"))]


def split(label):
    peer, _, fields = label.partition(":")
    return peer, parse_fields(fields)


def tensor_sizes(path):
    """Number of weights by tensor name of a safetensors file."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return {name: math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


class Peers:
    def __init__(self, programs, installation, scratch):
        self.programs, self.installation, self.scratch = programs, installation, scratch
        self._dense = {}

    @staticmethod
    def calibrates(label):
        return label.startswith("llm-compressor-gptq")

    @staticmethod
    def series(label):
        peer, fields = split(label)
        return " ".join([peer, *("symmetric" for _ in range(peer != "llama.cpp" and not fields.get("asym")))])

    @contextlib.contextmanager
    def quantized(self, label, model, calibration):
        """The folder of a peer's dequantized model, removed afterwards, and its bits, bytes and seconds."""
        peer, fields = split(label)
        folder = self.scratch / "peer"
        make = self._llama_cpp if peer == "llama.cpp" else self._llm_compressor
        try:
            yield folder, make(fields, model, calibration, folder, rtn=peer.endswith("-rtn"))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _run(self, *command):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandFailed(f"{command[0]}: {(done.stdout + done.stderr).strip()[-2000:]}")
        return done.stdout

    def _oracle(self, *command):
        return self._run(self.installation / "oracle/bin/python", *command)

    def _hugging_face(self, model, folder):
        """`model`, dequantized, as a Hugging Face folder of fp32."""
        self._oracle(f"{self.programs}/oracle_ppl.py", model, "--windows", 1, "--len", 16, "--save", folder, "--save-dtype", "float32")
        return folder

    def _dense_folder(self, model):
        if model.is_dir():
            return model
        if model not in self._dense:
            self._dense[model] = self._hugging_face(model, self.scratch / "peer-source")
        return self._dense[model]

    def _llm_compressor(self, fields, model, calibration, folder, rtn):
        command = [self.installation / "gptq/bin/python", f"{self.programs}/peer_gptq.py", self._dense_folder(model), folder,
                   "--bits", fields["bits"], "--group", fields.get("group", 64), "--samples", calibration["samples"],
                   "--len", calibration["length"], "--text", calibration["calibration"]]
        self._run(*command, *["--asym"] * bool(fields.get("asym")), *["--rtn"] * rtn)
        told = json.loads((folder / "peer.json").read_text(encoding="utf-8"))
        sizes = {name: size for path in folder.glob("*.safetensors") for name, size in tensor_sizes(path).items()}
        linear = sum(size for name, size in sizes.items() if name.endswith("_proj.weight"))
        bits = told["bpw"] * linear + 16 * (sum(sizes.values()) - linear)
        return {"linear_bits": told["bpw"], "total_bits": bits / sum(sizes.values()), "bytes": bits / 8, "seconds": told["seconds"]}

    def _llama_cpp(self, fields, model, _calibration, folder, rtn):
        del rtn
        packed = self.scratch / "peer.gguf"
        begin = time.monotonic()
        self._run(self.installation / "llamacpp/bin/llama-quantize", "--allow-requantize", model, packed, fields["type"], 2)
        seconds = time.monotonic() - begin
        counted = json.loads(self._oracle("-c", COUNT_GGUF, packed))
        self._hugging_face(packed, folder)
        packed.unlink()
        (linear_bytes, linear), (all_bytes, everything) = counted["linear"], counted["all"]
        return {"linear_bits": 8 * linear_bytes / linear, "total_bits": 8 * all_bytes / everything, "bytes": all_bytes, "seconds": seconds}
