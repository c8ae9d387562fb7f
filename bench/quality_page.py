"""The page of bench/quality: one self-contained HTML file with the tables and plots as inline SVG."""
import collections
import html
import math

from quality_table import block_of, gap_groups, gap_table, kind_of, run_table

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 420, 64, 16, 14, 44
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1120px; padding: 0 1rem; color: #1c1e21; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .55rem; text-align: right; border-bottom: 1px solid #e3e5e8; white-space: nowrap }
th:first-child, td:first-child { text-align: left } tr:hover td { background: #f3f6fa }
.facts td { white-space: normal; text-align: left } .wide { overflow-x: auto }
svg { display: block; max-width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: #43474c }
.grid { stroke: #e3e5e8 } .axis { stroke: #8a9099 } .curve { fill: none; stroke-width: 1.8 }
.series:hover .curve { stroke-width: 4 } .plot:has(.series:hover) .series:not(:hover) { opacity: .12 }
.key { columns: 4; font-size: 13px; margin: .3rem 0 0 4rem; padding: 0; list-style: none } .key b { font-weight: 700 }
"""


def ticks(low, high, log):
    """Round values in [low, high]: 1, 2 and 5 of each decade (all digits of a short range), or steps of such."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        digits = (1, 2, 5) if high > 8 * low else range(1, 10)
        values = [digit * 10.0 ** decade for decade in decades for digit in digits]
    else:
        raw = (high - low) / 6
        step = next(s for s in (m * 10.0 ** math.floor(math.log10(raw)) for m in (1, 2, 5, 10)) if s >= raw)
        values = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [value for value in values if low <= value <= high]


class Axis:
    """Maps values to pixels from `begin` to `end`, on a linear or a log scale, with a little air at both ends."""

    def __init__(self, values, begin, end, log):
        low, high = min(values), max(values)
        if log:
            low, high = low / 1.1, high * 1.1
        else:
            air = 0.03 * (high - low) or 0.5
            low, high = low - air, high + air
        self.low, self.high, self.begin, self.end = low, high, begin, end
        self.scale = math.log if log else float
        self.ticks = ticks(low, high, log)

    def __call__(self, value):
        at = (self.scale(value) - self.scale(self.low)) / (self.scale(self.high) - self.scale(self.low))
        return self.begin + at * (self.end - self.begin)


def colours(names):
    return {name: f"hsl({360 * i / max(1, len(names)):.0f} 70% {(42, 58)[i % 2]}%)" for i, name in enumerate(names)}


def frame(x, y, x_title, y_title):
    out = []
    for value in x.ticks:
        out.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
                   f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{value:g}</text>')
    for value in y.ticks:
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
                   f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    out.append(f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'
               f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x_title)}</text>'
               f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">{html.escape(y_title)}</text>')
    return "".join(out)


def curve(x, y, points, colour, dots):
    """One series: its line, and a dot with its words for every point."""
    path = "M" + "L".join(f"{x(px):.1f} {y(py):.1f}" for px, py, _ in points)
    marks = "".join(f'<circle cx="{x(px):.1f}" cy="{y(py):.1f}" r="{4 if dots else 2}" fill="{colour}"><title>{html.escape(words)}</title></circle>'
                    for px, py, words in points)
    return f'<g class="series"><path class="curve" stroke="{colour}" d="{path}"/>{marks}</g>'


def chart(series, x_title, y_title, dots=True):
    """`series`: {name: [(x, y, words)]}, y on a log scale. A pointer on a series dims the others."""
    series = {name: sorted(p for p in points if p[1] and p[1] > 0) for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    every = [point for points in series.values() for point in points]
    x = Axis([p[0] for p in every], LEFT, WIDTH - RIGHT, log=False)
    y = Axis([p[1] for p in every], HEIGHT - BOTTOM, TOP, log=True)
    colour = colours(list(series))
    curves = "".join(curve(x, y, points, colour[name], dots) for name, points in series.items())
    key = "".join(f'<li><b style="color:{colour[name]}">&#9632;</b> {html.escape(name)}</li>' for name in series)
    return (f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_title)} over {html.escape(x_title)}">'
            f'{frame(x, y, x_title, y_title)}{curves}</svg><ul class="key">{key}</ul>')


def html_table(head, body):
    cells = lambda row, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
    rows = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in body)
    return f'<div class="wide"><table><tr>{cells(head, "th")}</tr>{rows}</table></div>'


def rate_distortion(rows, measure, title):
    series = collections.defaultdict(list)
    for row in rows:
        if row["linear_bits"]:
            name = row["series"] if "self" not in row["calibration"] else f"{row['series']} (self-calibrated)"
            series[name].append((row["linear_bits"], row[measure], f"{row['run']}: {row['linear_bits']:.3f} bit, {row[measure]:.4g}"))
    return chart(series, "stored bits a weight of the linears", title)


def by_block(rows, measure):
    """The measure's root mean square over the linears of each block."""
    blocks = collections.defaultdict(list)
    for row in rows:
        blocks[block_of(row["layer"])].append(row)
    return [(block, math.sqrt(sum(r[measure] ** 2 for r in linears) / len(linears)),
             "; ".join(f"{kind_of(r['layer'])} {r[measure]:.4f}" for r in linears)) for block, linears in sorted(blocks.items())]


def layer_errors(rows, layers):
    """A chart for each whole number of bits."""
    sizes, out = {row["run"]: row["linear_bits"] for row in rows if row["linear_bits"]}, []
    for bits in sorted({int(size) for size in sizes.values()}):
        series = collections.defaultdict(list)
        for row in layers:
            if int(sizes.get(row["run"], -1)) == bits:
                series[row["run"]].append(row)
        plot = chart({run: by_block(linears, "relative_error") for run, linears in series.items()}, "block", "relative error of the layer objective", dots=False)
        out.append(f"<h3>{bits} to {bits + 1} bit</h3>{plot}" if plot else "")
    return "".join(out)


def rate_gaps(layers):
    head, body = gap_table(layers)
    if not body:
        return ""
    series = {words: by_block(rows, "rate_gap_bits") for words, rows in gap_groups(layers).items()}
    return ("<h2>AM/GM rate gap</h2><p>Half the log2 of arithmetic over geometric mean of the pivots: what one step for all columns wastes "
            f"against steps proportional to 1/L<sub>jj</sub>. Mean (least..largest) over the blocks.</p>{html_table(head, body)}"
            f"{chart(series, 'block', 'rate gap, bit', dots=False)}")


def page(facts, rows, layers):
    told = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>" for name, value in facts.items())
    parts = [f'<h1>Quality per bit: {html.escape(facts["model"])}</h1><table class="facts">{told}</table>']
    for text in dict.fromkeys(row["text"] for row in rows):
        here = [row for row in rows if row["text"] == text]
        parts.append(f"<h2>{html.escape(text)}</h2>{html_table(*run_table(here))}"
                     f"<h3>KL divergence from the original</h3>{rate_distortion(here, 'mean_kl', 'mean KL, nats a token')}"
                     f"<h3>Perplexity</h3>{rate_distortion(here, 'perplexity', 'perplexity')}")
    parts.append(f"<h2>Error of each block</h2><p>Root mean square over the block's linears of sqrt(loss / loss of all-zero weights), each in its own "
                 f"damped metric; a point's words name the linears.</p>{layer_errors(rows, layers)}")
    parts.append(rate_gaps(layers))
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Quality per bit: {html.escape(facts["model"])}</title>'
            f"<style>{STYLE}</style>{''.join(parts)}</html>\n")
