"""The table of bench/quality: rows of runs and of their layers, kept as CSV files so that an interrupted table can go on."""
import csv
import json
import pathlib

# What makes a row; a row with the same key is not measured again.
KEY = ("model", "text", "context", "windows", "calibration", "run")
MEASURES = ("series", "linear_bits", "total_bits", "bytes", "perplexity", "mean_kl", "kl_p999", "top1", "worst_layer", "worst_error",
            "entropy_bits", "clip_rate", "seconds", "recipe")
LAYER = ("model", "calibration", "run", "order", "rotation", "recipe_damping", "layer", "rows", "cols", "bits_per_weight", "relative_error", "proxy_loss",
         "babai_bound", "clip_rate", "rate_gap_bits", "entropy_bits", "alpha", "outliers")

COLUMNS = (("run", "run", "{}"), ("linear_bits", "linears, bit", "{:.3f}"), ("total_bits", "total, bit", "{:.3f}"),
           ("bytes", "MB", "{:.1f}"), ("perplexity", "perplexity", "{:.3f}"), ("mean_kl", "mean KL", "{:.4f}"),
           ("kl_p999", "KL 99.9 %", "{:.2f}"), ("top1", "top-1", "{:.4f}"), ("worst_error", "worst error", "{:.4f}"),
           ("worst_layer", "worst layer", "{}"), ("entropy_bits", "entropy", "{:.3f}"), ("clip_rate", "clipped", "{:.5f}"),
           ("seconds", "quantize, s", "{:.0f}"))


def read_rows(path):
    """Rows of a CSV file, numbers as numbers; none if it is not there."""
    def value(text):
        try:
            return float(text)
        except ValueError:
            return text or None
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value(text) for key, text in row.items()} for row in csv.DictReader(file)]


class CsvFile:
    """Rows in memory and, with a path, on disk as soon as they are added."""

    def __init__(self, path, columns, resume):
        self.path, self.columns = path, columns
        self.rows = read_rows(path) if path and resume else []
        if path and not self.rows:
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow(columns)

    def add(self, row):
        self.rows.append(row)
        if not self.path:
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(["" if row.get(column) is None else row[column] for column in self.columns])


class Table:
    def __init__(self, path, resume):
        path = pathlib.Path(path) if path else None
        self.runs = CsvFile(path, (*KEY, *MEASURES), resume)
        self.layers = CsvFile(path and path.with_suffix(".layers.csv"), LAYER, resume)

    def find(self, key):
        return next((row for row in self.runs.rows if all(row[name] == key[name] for name in KEY)), None)

    def add_run(self, key, measures, linears):
        """The run's row, and its layers' unless they stand there already from another text."""
        self.runs.add({**dict.fromkeys(MEASURES), **key, **measures, "recipe": json.dumps(measures.get("recipe") or {})})
        here = {name: key[name] for name in ("model", "calibration", "run")}
        if any(all(row[name] == here[name] for name in here) for row in self.layers.rows):
            return
        recipe = measures.get("recipe") or {}
        for linear in linears:
            self.layers.add({**here, **linear, "layer": linear["name"], "order": recipe.get("order"), "rotation": recipe.get("rotation"),
                             "recipe_damping": recipe.get("damping")})


def weighted(linears, name):
    """Mean over the weights of the linears; None without any."""
    weights = sum(linear["rows"] * linear["cols"] for linear in linears)
    return sum(linear[name] * linear["rows"] * linear["cols"] for linear in linears) / weights if weights else None


def text_table(head, body):
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths)))
                     for row in [head, *body])


def run_cells(row):
    values = {**row, "bytes": row["bytes"] and row["bytes"] / 1e6}
    return ["" if values[name] is None else form.format(values[name]) for name, _, form in COLUMNS]


def run_table(rows):
    return [head for _, head, _ in COLUMNS], [run_cells(row) for row in rows]


def kind_of(layer):
    """"q" of "blocks.3.q.weight"."""
    return layer.removesuffix(".weight").rsplit(".", 1)[-1]


def block_of(layer):
    return int(next((part for part in layer.split(".") if part.isdigit()), 0))


def gap_groups(layers):
    """{words: layer rows} of one run for each order, basis of the inputs and damping: the gap depends on no other choice."""
    first = {}
    for row in layers:
        if row["rate_gap_bits"]:
            basis = "Hadamard, " if row["rotation"] in ("input", "both") else ""
            first.setdefault(f"{basis}{row['order']}, damping {row['recipe_damping']:g}", row["run"])
    return {words: [row for row in layers if row["run"] == run] for words, run in first.items()}


def gap_table(layers):
    """AM/GM rate gap in bits by kind of linear: mean (least..largest) over the blocks."""
    groups = gap_groups(layers)
    kinds = list(dict.fromkeys(kind_of(row["layer"]) for rows in groups.values() for row in rows))
    body = []
    for kind in [*kinds, "all"]:
        cells = []
        for rows in groups.values():
            gaps = [row["rate_gap_bits"] for row in rows if kind in ("all", kind_of(row["layer"]))]
            cells.append(f"{sum(gaps) / len(gaps):.3f} ({min(gaps):.3f}..{max(gaps):.3f})" if gaps else "")
        body.append([kind, *cells])
    return ["rate gap, bit", *groups], body if groups else []
