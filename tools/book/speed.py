"""The page "Speed": every file of bench/results as tables, and what none of them measured."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

HEAD = """# Speed

What was raced, on which machine, and when. `python -m bench` writes these files; the tables show
all of their rows, also those that we lose. A **ratio** is the peer's time divided by ours, the
median over the rounds with its 20th and 80th percentile: above 1 we are faster. "~1" means that it
can't be told from the peer raced against itself. A **floor** is what our row must reach.
"""


def page(root: Path) -> str:
    """The page, in MyST Markdown."""
    files = sorted((root / "bench" / "results").glob("*.json"), reverse=True)
    results = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
    lines = [HEAD]
    for name, result in results.items():
        table = _language if "recipes" in result else _dcgan if "arms" in result else _race
        own = {"-diffusion": _diffusion, "-flow": _flow, "-scenes": _scenes}
        table = next((other for word, other in own.items() if word in name), table)
        lines += table(name, result)
    return "\n".join([*lines, "## What was not measured", "", *_gaps(results)]) + "\n"


def _head(kind: str, name: str, result: dict) -> list[str]:
    versions = ", ".join(f"{key} {value}" for key, value in result["versions"].items() if value)
    capability = result["capability"]
    device = result["device"] + (
        f", capability {capability[0]}.{capability[1]}" if capability else ""
    )
    trial = " A quick trial, not a measurement." if result["quick"] else ""
    return [
        f"## {kind}: {result['device']}, {result['date']}",
        "",
        f"- **Device:** {device}; {result['threads']} threads.{trial}",
        f"- **Versions:** {versions}",
        f"- **File:** `bench/results/{name}`",
    ]


def _race(name: str, result: dict) -> list[str]:
    lines = [*_head("Ops", name, result), ""]
    for op, entry in result["ops"].items():
        ceilings = entry["ceilings"]
        unfinished = "" if entry["complete"] else " Stopped before the end."
        lines += [
            f"### {op}",
            "",
            f"`{entry['command']}`; a copy moves {ceilings['copy_gigabytes_per_second']} GB/s, a "
            f"matrix product ({ceilings['matmul']}) runs at {ceilings['matmul_teraflops']} "
            f"TFLOP/s.{unfinished}",
            "",
            "| case | direction | ours | ms | peer | ms | ratio | floor |",
            "|:--|:--|:--|--:|:--|--:|:--|:--|",
            *(_row(op, row) for row in entry["rows"]),
            "",
        ]
    return lines


def _row(op: str, row: dict) -> str:
    kind = "" if row["op"] == op else f"{row['op']}: "
    names = [kind + row["case"], row["direction"], row["arm"]]
    if row["refused"]:
        why = "; ".join(f"{arm}: {reason}" for arm, reason in row["refused"].items())
        return _cells(*names, "—", row["peer"], "—", f"not timed: {why}", _floor(row))
    ratio = f"{row['ratio']:.2f}"
    least, most = row["noise"]  # what chance alone makes, as the bench says
    if row["low"] <= most and least <= row["high"]:
        ratio = "~1"
    ratio += f" [{row['low']:.2f}, {row['high']:.2f}]"
    times = [f"{row[key]:.3g}" for key in ("milliseconds", "peer_milliseconds")]
    return _cells(*names, times[0], row["peer"], times[1], ratio, _floor(row))


def _floor(row: dict) -> str:
    if not row["floor"]:
        return "—"
    word = {True: "met", False: "**not met**", None: "not judged"}[row["meets"]]
    return ", ".join(f"{key} {value:.3g}" for key, value in row["floor"].items()) + f": {word}"


def _language(name: str, result: dict) -> list[str]:
    lines = [
        *_head("Language models", name, result),
        f"- **Command:** `{result['command']}`: each network learned for "
        f"{result['budget_cpu_seconds']:.0f} s of CPU time, from {len(result['seeds'])} seeds.",
        "",
        "Bits per character of held-out text, fewer is better: median, and range over seeds.",
        "",
        "| text | model | parameters | bits | range |",
        "|:--|:--|--:|--:|:--|",
    ]
    arms: dict[tuple[str, str], list[dict]] = {}
    for row in result["rows"]:
        arms.setdefault((row["corpus"], row["arm"]), []).append(row)
    for (corpus, arm), rows in arms.items():
        bits = [row["bits_per_character"] for row in rows]
        spread = f"{min(bits):.3f} to {max(bits):.3f}" if len(bits) > 1 else "counts, no seed"
        size = rows[0]["parameters"]
        median = f"{statistics.median(bits):.3f}"
        lines.append(_cells(corpus, arm, f"{size:,}" if size else "—", median, spread))
    return [*lines, ""]


def _dcgan(name: str, result: dict) -> list[str]:
    lines = [
        *_head("Rules of the DCGAN", name, result),
        f"- **Command:** `{result['command']}`: one rule of chapter 31 taken away at a time, all "
        f"else as tuned for the full recipe, from {len(result['seeds'])} seeds.",
        "",
        "Of the averaged generator: the share of its images that the judge recognises, relative to "
        "real images, and the Fréchet distance to real ones; median, and range over seeds.",
        "",
        "| arm | what is changed | recognised | range | Fréchet | range |",
        "|:--|:--|--:|:--|--:|:--|",
    ]
    for arm, change in result["arms"].items():
        rows = [row for row in result["rows"] if row["arm"] == arm]
        shares = [row["averaged"]["recognised"] / row["real"]["recognised"] for row in rows]
        distances = [row["averaged"]["frechet"] for row in rows]
        cells = []
        for values in (shares, distances) if rows else ():
            cells += [f"{statistics.median(values):.3g}", f"{min(values):.3g} to {max(values):.3g}"]
        lines.append(_cells(arm, change, *(cells or ["—"] * 4)))
    return [*lines, ""]


def _diffusion(name: str, result: dict) -> list[str]:
    lines = [
        *_head("Losses of a diffusion model", name, result),
        f"- **Command:** `{result['command']}`: chapter 40's net, trained for as many steps under "
        f"each loss, from {len(result['seeds'])} seeds.",
        "",
        "The bound on −log p, in bits per pixel, and of 1000 samples, drawn in 50 ancestral steps: "
        "the share that the judge recognises, relative to fresh real images, the share that shows "
        "its label, and the Fréchet distance to real images; means over seeds.",
        "",
        "| arm | what is learned | bits | recognised | label | Fréchet |",
        "|:--|:--|--:|--:|--:|--:|",
    ]
    for arm, change in result["arms"].items():
        rows = [row for row in result["rows"] if row["arm"] == arm]
        drawn = [row["samples"]["ancestral 50"] for row in rows]
        real = [row["samples"]["real"]["recognised"] for row in rows]
        shares = [one["recognised"] / best for one, best in zip(drawn, real, strict=True)]
        columns = [row["bound"] for row in rows], shares
        columns += tuple([one[key] for one in drawn] for key in ("label", "frechet"))
        cells = [f"{statistics.mean(values):.3g}" for values in columns] if rows else ["—"] * 4
        lines.append(_cells(arm, change, *cells))
    return [*lines, ""]


def _flow(name: str, result: dict) -> list[str]:
    lines = [
        *_head("Flows of few steps", name, result),
        f"- **Command:** `{result['command']}`: chapter 42's nets, trained for about a minute on "
        f"one thread, from {len(result['seeds'])} seeds.",
        "",
        "Of 1000 samples: the share that the judge recognises, relative to fresh real images, the "
        "share that shows its label, the Fréchet distance to real images, and how many are drawn a "
        "second; means over seeds.",
        "",
        "| arm | drawn by | recognised | label | Fréchet | a second |",
        "|:--|:--|--:|--:|--:|--:|",
    ]
    for arm in result["arms"]:
        way = "student 1" if arm == "student" else "Euler 10"
        rows = [row["samples"] for row in result["rows"] if row["arm"] == arm]
        keys = ("label", "frechet", "images_per_second")
        columns = [[row[way][key] for row in rows] for key in keys]
        columns.insert(0, [row[way]["recognised"] / row["real"]["recognised"] for row in rows])
        cells = ["—"] * 4
        if rows:
            *shares, speed = map(statistics.mean, columns)
            cells = [*(f"{share:.3g}" for share in shares), f"{speed:.0f}"]
        lines.append(_cells(arm, "one step" if arm == "student" else "ten Euler steps", *cells))
    return [*lines, ""]


def _scenes(name: str, result: dict) -> list[str]:
    lines = [
        *_head("Scenes from captions", name, result),
        f"- **Command:** `{result['command']}`: chapter 43's latent diffusion, whose captions ask "
        f"for pairs of shape and colour held out of training; {len(result['seeds'])} seeds.",
        "",
        "The share of pictures in which all attributes are as asked, mean and standard error over "
        "seeds; CPU seconds of a training.",
        "",
        "| arm | steps | seconds | English | error | Chinese | error |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for arm, recipe in result["arms"].items():
        rows = [row for row in result["rows"] if row["arm"] == arm]
        cells = [f"{statistics.mean(row['cpu_seconds'] for row in rows):.0f}"] if rows else ["—"]
        for language in ("en", "zh") if rows else ():
            shares = [row["captions"][f"held out, {language}"]["all"] for row in rows]
            error = statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else 0
            cells += [f"{statistics.mean(shares):.3f}", f"{error:.3f}" if error else "—"]
        lines.append(_cells(arm, str(recipe["steps"]), *cells, *["—"] * (5 - len(cells))))
    return [*lines, ""]


def _cells(*values: str) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def _gaps(results: dict[str, dict]) -> Iterator[str]:
    races = {name: result for name, result in results.items() if "ops" in result}
    if not any(result["capability"] for result in races.values()):
        yield "- **GPUs.** No file comes from one. The Triton kernels have been compared with their"
        yield "  references and compiled, but not timed, so that no call takes one by itself."
    for name, result in races.items():
        lost = [f"{op} (not run)" for op in result["missing"]]
        lost += [f"{op} (stopped)" for op, entry in result["ops"].items() if not entry["complete"]]
        if lost:
            yield f"- **In `{name}`:** {', '.join(lost)}."
        absent = [key for key in ("triton", "liger-kernel") if not result["versions"][key]]
        if absent:
            yield f"- **Peers not installed for `{name}`:** {', '.join(absent)}."
        refused = sum(
            bool(row["refused"]) for entry in result["ops"].values() for row in entry["rows"]
        )
        if refused:
            yield f"- **In `{name}`:** {refused} rows say 'not timed', and why."
    for name, result in results.items():
        if not result.get("complete", True):
            yield f"- **In `{name}`:** stopped before the last arm."
    yield "- **Everything else:** other machines, other sizes, and energy."
