"""What bench/quality runs: the notation of a run, and the named sets.

A run is PRESET[:key=value[,key=value...]]. Keys are fields of a recipe (docs/methods.md), but for three that say how it is
calibrated: calibration, samples, length. target_bits=same stands for the bits that the linears of the first run came to.
"""
import dataclasses
import json
import math

CALIBRATION_KEYS = ("calibration", "samples", "length")
SIZE_KEYS = ("bits", "target_bits", "target_bytes")
SAME = "same"


@dataclasses.dataclass(frozen=True)
class Run:
    preset: str
    fields: dict
    anchor: "Run" = None  # whose size target_bits=same means

    @property
    def label(self):
        return self._spell(self.fields)

    @property
    def series(self):
        """The label without what only sets the size: runs of one series lie on one curve."""
        return self._spell({key: value for key, value in self.fields.items() if key not in SIZE_KEYS})

    def _spell(self, fields):
        return self.preset + ":" * bool(fields) + ",".join(f"{key}={json.dumps(value).strip(chr(34))}" for key, value in fields.items())

    def calibration(self, defaults):
        return {key: self.fields.get(key, defaults[key]) for key in CALIBRATION_KEYS}

    def sized(self, bits_of):
        """This run with a number for target_bits=same; `bits_of` tells the bits of a run measured before."""
        if self.fields.get("target_bits") != SAME:
            return self
        if self.anchor is None:
            raise SystemExit(f"{self.label}: the first run has no other's size to take")
        return Run(self.preset, {**self.fields, "target_bits": math.ceil(1000 * bits_of(self.anchor)) / 1000})

    def recipe(self, defaults):
        """The recipe's JSON form."""
        return {"preset": self.preset, **defaults, **{key: value for key, value in self.fields.items() if key not in CALIBRATION_KEYS}}


def parse_fields(text):
    """{"bits": 3, "symmetric": True, "order": "natural"} of "bits=3,symmetric=true,order=natural"."""
    fields = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r} is not key=value")
        try:
            fields[key] = json.loads(value)
        except json.JSONDecodeError:
            fields[key] = value
    return fields


def parse_runs(texts):
    """Their anchor is the first of them."""
    runs = []
    for text in texts:
        preset, _, fields = text.partition(":")
        runs.append(Run(preset, parse_fields(fields), runs[0] if runs else None))
    return runs


def at_size(recipe, size):
    """A preset at a size: a target where any is met, else codes of as many whole bits, and where whole bits are shared out the same
    size as babai's."""
    if not recipe.get("target_bits"):
        return Run(recipe["preset"], {"bits": int(size)})
    if "integer" in recipe["grid"]:
        return Run(recipe["preset"], {"target_bits": size})
    return Run(recipe["preset"], {"target_bits": SAME}, Run("babai", {"bits": int(size)}))


def every_preset(presets, sizes):
    """Each preset (a list of recipes) at each size, and best at the size of gptq."""
    quantizing = [recipe for recipe in presets if recipe["solver"] != "dense"]
    return [run for size in sizes
            for run in (*(at_size(recipe, size) for recipe in quantizing), Run("best", {"target_bits": SAME}, Run("gptq", {"bits": int(size)})))]


def ablation(bits):
    """One stage changed at a time from babai on the uniform grid; K = 1, no target, no rotation and the loss-weighted scale
    search are the base itself. The last block separates not clipping from entropy coding: nearest and Babai, each on the clipped
    grid, on the clipped grid with what overflows kept apart, and on all integers, at the base's size."""
    base = f"babai:bits={bits}"
    one_stage = ["order=natural", "order=min-pivot", "target=fixed,alpha=0.5", "target=fixed,alpha=1", "target=closed-form",
                 "target=closed-form,residual=true", "target=cross-validated", "target=cross-validated,residual=true",
                 "scale_fit=abs-max", "scale_fit=mse", *(f"solver=k-best,beam={beam}" for beam in (1, 2, 4, 8, 16)), "descent_passes=2",
                 "rescale=rows", "rescale=columns", "rescale=both", "norm_tweak=true",
                 "rotation=input", "rotation=output", "rotation=both", "rotation=input,order=natural", "symmetric=true"]
    rate = [f"rtn:bits={bits}", f"gptq:bits={bits}", *(f"ssqr:bits={bits},outliers={share}" for share in (0.01, 0.02, 0.05)),
            "hptq:target_bits=same,solver=nearest", "hptq:target_bits=same", "hptq:target_bits=same,rate_weight=1",
            "watersic:target_bits=same", "best:target_bits=same"]
    return parse_runs([base, *(f"{base},{change}" for change in one_stage), *rate])
