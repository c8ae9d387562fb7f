"""What bench/quality runs: the notation of a run, and the named sets.

A run is PRESET[:key=value[,key=value...]]. Keys are fields of a recipe (docs/methods.md), but for three that say how it is
calibrated: calibration, samples, length. target_bits=same stands for the linears' bits of the first run of the table.
"""
import dataclasses
import json

CALIBRATION_KEYS = ("calibration", "samples", "length")
SIZE_KEYS = ("bits", "target_bits", "target_bytes")
SAME = "same"


@dataclasses.dataclass(frozen=True)
class Run:
    preset: str
    fields: dict

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

    def recipe(self, defaults, first_bits):
        """The recipe's JSON form; `first_bits` replaces target_bits=same."""
        fields = {**defaults, **{key: value for key, value in self.fields.items() if key not in CALIBRATION_KEYS}}
        if fields.get("target_bits") == SAME:
            fields["target_bits"] = first_bits
        return {"preset": self.preset, **fields}


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


def parse_run(text):
    preset, _, fields = text.partition(":")
    return Run(preset, parse_fields(fields))


def every_preset(presets, sizes):
    """Each preset (a list of recipes) at each size: a target for those that take one, else codes of as many whole bits."""
    quantizing = [recipe for recipe in presets if recipe["solver"] != "dense"]
    return [parse_run(f"{recipe['preset']}:" + (f"target_bits={size}" if recipe.get("target_bits") else f"bits={int(size)}"))
            for size in sizes for recipe in quantizing]


def ablation(bits):
    """One stage changed at a time from babai on the uniform grid; K = 1, no target, no rotation and the loss-weighted scale
    search are the base itself. The last block separates not clipping from entropy coding: nearest and Babai, each on the clipped
    grid, on the clipped grid with what overflows kept apart, and on all integers, at the base's size."""
    base = f"babai:bits={bits}"
    one_stage = ["order=natural", "order=min-pivot", "target=fixed,alpha=0.5", "target=fixed,alpha=1", "target=closed-form",
                 "target=closed-form,residual=true", "scale_fit=abs-max", "scale_fit=mse",
                 *(f"solver=k-best,beam={beam}" for beam in (1, 2, 4, 8, 16)), "descent_passes=2",
                 "rescale=rows", "rescale=columns", "rescale=both", "norm_tweak=true",
                 "rotation=input", "rotation=output", "rotation=both", "rotation=input,order=natural", "symmetric=true"]
    rate = [f"rtn:bits={bits}", f"gptq:bits={bits}", *(f"ssqr:bits={bits},outliers={share}" for share in (0.01, 0.02, 0.05)),
            "hptq:target_bits=same,solver=nearest", "hptq:target_bits=same", "hptq:target_bits=same,rate_weight=1",
            "watersic:target_bits=same", "best:target_bits=same"]
    return [parse_run(text) for text in (base, *(f"{base},{change}" for change in one_stage), *rate)]
