"""Tables, a summary and plots of what was measured."""

import math
import sys
from itertools import groupby, product

from measuring import print_table

PEERS = ("numexpr", "numba", "jax")
#: From here on the issue wants to be ahead.
COUNTED = 10_000
SHOWN = 40


def circumstances(cell):
    mode = "into" if cell["into"] else "fresh"
    return f"{cell['threads']} thread(s), {cell['regime']} heap, {mode}"


def title(cell):
    kind = f"{cell['dtype']}, n = {cell['n']:,}: {cell['expression']}"
    return f"{circumstances(cell)}, {kind}"


def rows_of(results, name):
    return [
        row
        for cell in results["cells"]
        for row in cell["rows"]
        if row["contender"] == name
    ]


def times(cell, measure="min"):
    """Seconds of each whose results are right."""
    return {row["contender"]: row[measure] for row in cell["rows"] if row["ok"]}


def best_peer(cell):
    """The fastest peer's name; None without any."""
    found = times(cell)
    return min((name for name in PEERS if name in found), key=found.get, default=None)


def ratio(cell, name):
    """How many times faster we are; None where that was not measured."""
    found = times(cell)
    if "ours" not in found or name not in found:
        return None
    return found[name] / found["ours"]


def best_ratio(cell):
    return ratio(cell, best_peer(cell))


def geometric_mean(values):
    values = [value for value in values if value is not None]
    if not values:
        return None
    return math.exp(sum(map(math.log, values)) / len(values))


def figure(value):
    return "-" if value is None else f"{value:.2f}"


def microseconds(row):
    mark = "" if row["ok"] else "!"
    return f"{row['min'] * 1e6:.4g}{mark}"


def block(cell):
    return cell["threads"], cell["regime"], cell["into"], cell["dtype"]


def print_tables(results):
    """A table a number of threads, regime, mode and dtype."""
    names = [
        name for name in ("ours", "eager", *PEERS, "limit") if rows_of(results, name)
    ]
    header = ["expression", "n", *names, "best peer", "limit", "median", "faults"]
    print(
        "Microseconds, minimum; ! marks a wrong result. `best peer` and `limit` are "
        "their times in ours, more is\nbetter; `median` is our median in our minimum, "
        "`faults` page faults of ours and of eager NumPy.\n"
    )
    for _, cells in groupby(sorted(results["cells"], key=block), key=block):
        cells = list(cells)
        print(title(cells[0]).rsplit(", n =", 1)[0])
        print_table(header, [table_row(cell, names) for cell in cells])
        print()


def table_row(cell, names):
    rows = {row["contender"]: row for row in cell["rows"]}
    ours = rows.get("ours")
    faults = [f"{rows[x]['faults']:.0f}" for x in ("ours", "eager") if x in rows]
    return [
        cell["expression"],
        f"{cell['n']:,}",
        *(microseconds(rows[x]) if x in rows else "-" for x in names),
        figure(best_ratio(cell)),
        figure(ratio(cell, "limit")),
        figure(ours["median"] / ours["min"] if ours else None),
        "/".join(faults),
    ]


def print_claims(results, rst=False):
    """How many times faster than eager NumPy: claimed, found, ours."""
    names = [x for x in (*PEERS, "ours") if rows_of(results, x)]
    for _, cells in grouped(results["cells"], lambda cell: block(cell)[:3]):
        cells = list(cells)
        print(circumstances(cells[0]), end="\n\n" if rst else "\n")
        rows = []
        for cell in cells:
            found = times(cell)
            speedups = [
                found["eager"] / found[x] if x in found else None for x in names
            ]
            row = [claim_text(cell, rst), cell["dtype"], f"{cell['n']:,}"]
            rows.append([*row, cell["claimed"], *map(figure, speedups)])
        print_table(["expression", "dtype", "n", "claimed", *names], rows, rst)
        print()
    print_circumstances(results)
    print_wrong(results)


def claim_text(cell, rst):
    return f"{cell['expression']}, ``{cell['text']}``" if rst else cell["expression"]


def print_circumstances(results):
    print(f"{results['when']}, {results['processors']} x {results['processor']}")
    loads = [f"{results[x][0]:.1f}" for x in ("load_before", "load_after")]
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    print(f"load before {loads[0]}, after {loads[1]}; {versions}\n")


def print_summary(results):
    print_circumstances(results)
    counted = [cell for cell in results["cells"] if cell["n"] >= COUNTED]
    print(f"Geometric means of their times in ours, n >= {COUNTED:,}:")
    print_table(
        ["threads, heap, result", "cells", "eager", *PEERS, "best peer", "limit"],
        [
            *(
                summary_row(f"{t}, {regime}, {'into' if into else 'fresh'}", cells)
                for (t, regime, into), cells in grouped(counted, lambda x: block(x)[:3])
            ),
            summary_row("all", counted),
        ],
    )
    print("\nThe same by size:")
    print_table(
        ["n", "cells", "eager", *PEERS, "best peer", "limit"],
        [
            summary_row(f"{n:,}", cells)
            for n, cells in grouped(results["cells"], lambda x: x["n"])
        ],
    )
    print("\nThe same by expression, largest n only:")
    largest = max((cell["n"] for cell in results["cells"]), default=0)
    print_table(
        ["expression", "cells", "eager", *PEERS, "best peer", "limit"],
        [
            summary_row(name, cells)
            for name, cells in grouped(
                [x for x in results["cells"] if x["n"] == largest],
                lambda x: x["expression"],
            )
        ],
    )
    print_behind("numexpr", counted, lambda cell: "numexpr")
    print_behind("the best peer", counted, best_peer)
    print_behind("eager NumPy", counted, lambda cell: "eager")
    print_wrong(results)


def print_wrong(results):
    wrong = [
        f"{row['contender']}: {title(cell)}"
        for cell in results["cells"]
        for row in cell["rows"]
        if not row["ok"]
    ]
    if wrong:
        print(f"\nWrong results, not counted: {len(wrong)}")
        print("\n".join(wrong[:SHOWN]))


def grouped(cells, key):
    return groupby(sorted(cells, key=key), key=key)


def summary_row(name, cells):
    cells = list(cells)
    means = [geometric_mean(ratio(c, who) for c in cells) for who in ("eager", *PEERS)]
    means.append(geometric_mean(map(best_ratio, cells)))
    means.append(geometric_mean(ratio(cell, "limit") for cell in cells))
    return [name, len(cells), *map(figure, means)]


def print_means(results):
    """What the documentation shows, as reStructuredText."""
    counted = [cell for cell in results["cells"] if cell["n"] >= COUNTED]
    rows = []
    for (threads, into), cells in grouped(counted, lambda x: (x["threads"], x["into"])):
        kind = f"{threads}, {'existing array' if into else 'new array'}"
        rows.append([kind, f"{COUNTED:,} and more", *summary_row("", cells)[1:]])
    for n, cells in grouped(results["cells"], lambda x: x["n"]):
        rows.append(["all", f"{n:,}", *summary_row("", cells)[1:]])
    header = ["threads, result", "n", "cells", "eager", *PEERS, "best peer", "limit"]
    print_table(header, rows, True)


def print_behind(who, cells, name):
    """The cells where we are slower, the worst first."""
    measured = [(ratio(cell, name(cell)), cell) for cell in cells]
    measured = [(value, cell) for value, cell in measured if value is not None]
    behind = sorted((x for x in measured if x[0] < 1), key=lambda x: x[0])
    print(f"\nBehind {who} in {len(behind)} of {len(measured)} cells")
    for value, cell in behind[:SHOWN]:
        print(f"  {value:.2f}  {name(cell):<8} {title(cell)}")


def plot(results, directory):
    """ratio-to-best-peer.svg and ratio-to-limit.svg: ratios by size."""
    try:
        import matplotlib
    except ImportError:
        print("\nno plots: matplotlib is not installed", file=sys.stderr)
        return
    matplotlib.use("svg")
    from matplotlib import pyplot

    for name, function in {
        "best-peer": best_ratio,
        "limit": lambda cell: ratio(cell, "limit"),
    }.items():
        threads = sorted({cell["threads"] for cell in results["cells"]})
        regimes = sorted({cell["regime"] for cell in results["cells"]})
        figure, axes = pyplot.subplots(
            *(len(threads), len(regimes)),
            sharex=True,
            sharey=True,
            squeeze=False,
            figsize=(4 * len(regimes), 3.5 * len(threads)),
        )
        for axis, panel in zip(axes.flat, product(threads, regimes), strict=True):
            cells = [
                x for x in results["cells"] if (x["threads"], x["regime"]) == panel
            ]
            draw(axis, cells, function)
            axis.set_title(f"{panel[0]} thread(s), {panel[1]} heap")
        axes.flat[0].legend()
        figure.supxlabel("elements")
        figure.supylabel(f"time of {name.replace('-', ' ')} / ours; above 1: ahead")
        figure.tight_layout()
        path = directory / f"ratio-to-{name}.svg"
        figure.savefig(path)
        pyplot.close(figure)
        print(f"wrote {path}")


def draw(axis, cells, function):
    """A faint line an expression, a strong one for the mean of each mode."""
    axis.axhline(1, color="black", linewidth=0.8)
    for into, color in ((False, "tab:blue"), (True, "tab:orange")):
        mode = [cell for cell in cells if cell["into"] == into]
        for _, group in grouped(mode, lambda x: (x["expression"], x["dtype"])):
            draw_line(axis, group, function, color=color, alpha=0.2, linewidth=0.8)
        label = "into an existing array" if into else "fresh result"
        draw_line(axis, mode, function, color=color, linewidth=2, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")


def draw_line(axis, cells, function, **style):
    points = [
        (n, geometric_mean(map(function, group)))
        for n, group in grouped(cells, lambda x: x["n"])
    ]
    points = [(n, value) for n, value in points if value is not None]
    axis.plot(*zip(*points, strict=True) if points else ([], []), **style)
