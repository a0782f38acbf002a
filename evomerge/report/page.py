"""A report of a search: one HTML page that needs nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import evomerge
from evomerge.report import charts
from evomerge.report.canvas import HATCH, style
from evomerge.report.changes import Change, Changes, best_parent, changes
from evomerge.report.charts import both_widths, duration, number
from evomerge.report.drawing import Drawing, drawing_of
from evomerge.report.findings import (
    Standing,
    failures,
    layer_use,
    progress,
    relations,
    shown_name,
    spent,
    standings,
)
from evomerge.report.names import printable, shortened, with_short_names
from evomerge.report.svg import picture
from evomerge.study import LoadedRun
from evomerge.tasks import Item

MOST_RELATIONS = 24
"""How many searched numbers are drawn, those with the strongest relation to the score."""
MOST_CHANGES = 12
"""How many gained and lost items are listed, each."""
MOST_CHARACTERS = 1200
"""How much of a text is shown."""
CANDIDATES = "candidates.csv"
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that are not valid in a page, or turn the direction of the text after them."""

# Colours are those of the pictures. Printed pages are always light.
_STYLE = """
* { box-sizing: border-box }
html { color-scheme: light dark; background: var(--page); color: var(--ink); -webkit-text-size-adjust: 100% }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; max-width: 940px;
  margin: 0 auto; padding: 20px 16px 48px; overflow-wrap: anywhere }
h1 { font-size: 22px; line-height: 1.25; margin: 0 0 2px }
h2 { font-size: 17px; margin: 34px 0 8px; padding-top: 14px; border-top: 1px solid var(--line) }
h3 { font-size: 13px; font-weight: 600; margin: 0 0 2px }
p { margin: 6px 0 }
a { color: var(--heat) }
code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace }
pre { font: 12px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; margin: 4px 0;
  padding: 8px 10px; background: var(--shade); border-radius: 6px }
svg { display: block; max-width: 100%; height: auto }
svg .strong { font-weight: 600 }
.soft, figcaption { color: var(--soft); font-size: 13px }
.verdict { font-size: 18px; line-height: 1.4; margin: 14px 0; padding: 12px 14px; background: var(--shade);
  border-left: 4px solid var(--soft); border-radius: 4px }
.verdict.beaten { border-color: var(--m2) }
.verdict.not { border-color: var(--m1) }
figure { margin: 0; min-width: 0 }
.charts { display: grid; gap: 18px 26px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)) }
.charts svg { width: 100%; max-width: 560px }
svg.wide { width: 100% }
.small { display: grid; gap: 16px 14px; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)) }
.small svg { width: 100% }
.narrow { display: none; width: 100%; max-width: 520px }
@media screen and (max-width: 760px) { svg.wide { display: none } svg.narrow { display: block } }
.table { overflow-x: auto }
table { border-collapse: collapse; font-size: 14px }
th, td { text-align: left; padding: 3px 14px 3px 0; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600; color: var(--soft); font-size: 13px }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
details { margin-top: 8px }
summary { cursor: pointer }
details.item { margin: 0 }
details.item { border-bottom: 1px solid var(--line); padding: 5px 0 }
.line-best { color: var(--m1) } .line-middle { color: var(--heat) }
.gain, .loss { display: inline-block; width: 1.2em; font-weight: 700 }
.gain { color: var(--m2) } .loss { color: var(--m1) }
dl { display: grid; grid-template-columns: minmax(70px, max-content) minmax(0, 1fr); gap: 2px 12px; margin: 6px 0 }
dt { color: var(--soft); font-size: 13px } dd { margin: 0 } dd pre { margin: 0 }
ul { padding-left: 20px; margin: 6px 0 }
@media print {
  body { font-size: 11px; padding: 0 } h2 { break-after: avoid } figure, details.item { break-inside: avoid }
  details::details-content { content-visibility: visible; block-size: auto } pre { border: 1px solid var(--line) }
}
:root { --shade: #f3f5f7 }
@media screen and (prefers-color-scheme: dark) { :root { --shade: #1a2029 } }
"""


def report_page(run: LoadedRun, folder: Path) -> str:
    """Returns the report as the text of an HTML page.

    Args:
        run: the run.
        folder: where the page will be; its links lead from there to the run's files.
    """
    title = printable(run.folder.resolve().name)
    sections = [
        *_head(run, title),
        *_scores(run),
        *_progress(run),
        *_winner(run),
        *_relations(run),
        *_changes(changes(run)),
        *_cost(run),
        *_failures(run),
        *_files(run, folder),
    ]
    dark = "screen and (prefers-color-scheme: dark)"
    page = "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            # Nothing is loaded and no script runs, whatever a model wrote.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)} – evomerge</title>",
            f"<style>{style(':root', dark)}{_STYLE}</style>",
            "</head>",
            "<body>",
            f'<svg width="0" height="0" aria-hidden="true">{HATCH}</svg>',
            *sections,
            "</body>",
            "</html>\n",
        ]
    )
    return _UNSEEN.sub("�", page)


def _head(run: LoadedRun, title: str) -> Iterator[str]:
    settings = run.recipe.settings()
    done, failed = len(run.candidates), sum(trial.objective is None for trial in run.candidates)
    models = ", ".join(shown_name(name) for name in run.parents)
    tasks = ", ".join(run.tasks)
    yield f"<h1>{escape(title)}</h1>"
    yield (
        f'<p class="soft">{escape(run.recipe.merge_method)} of {escape(models)}, scored on {escape(tasks)}.'
        f" {done:,} candidates by {escape(settings.optimizer)}, seed {settings.seed}"
        f"{f', {failed:,} failed' if failed else ''}; {duration(sum(spent(run).seconds.values()))} in all.</p>"
    )
    if run.result is not None:
        kind = "beaten" if run.result.get("beaten") else "not"
        others = [*run.baselines, *(other["model"] for other in run.result.get("others", ()))]
        verdict, *notes = (
            with_short_names(str(text), others) for text in (run.result["verdict"], *run.result.get("notes", ()))
        )
        yield f'<p class="verdict {kind}">{escape(verdict)}</p>'
        yield from (f'<p class="soft">{escape(note)}</p>' for note in notes)
        return
    best, parent = run.best, best_parent(run)
    of = f" of {settings.evaluations:,}" if settings.evaluations >= done else ""
    said = f"{'Still running' if run.state == 'running' else 'Stopped'} after {done:,}{of} evaluations."
    if done >= settings.evaluations:
        said = f"All {done:,} evaluations are done; the holdout has not been scored yet."
    if best is None:
        said += " Nothing has been scored yet."
    else:
        said += f" Best so far: {shown_name(best.name)}, search score {number(best.objective)}"
        known = run.value(run.baselines[parent]) if parent else None
        said += f" (best model to merge, {shown_name(parent)}: {number(known)})." if parent else "."
    yield f'<p class="verdict">{escape(said)} The verdict comes with the holdout.</p>'


def _scores(run: LoadedRun) -> Iterator[str]:
    found = standings(run)
    if not found:
        return
    if run.result is not None:
        yield "<h2>Scores on the holdout</h2>"
        yield '<p class="soft">Items that the search never saw. Higher is better; bars are 95% intervals.</p>'
    else:
        yield '<h2>Search scores so far</h2><p class="soft">Higher is better.</p>'
    yield f"<figure>{both_widths(lambda width: charts.scores_chart(found, width))}</figure>"
    yield from _by_task(run, found)


def _by_task(run: LoadedRun, found: Sequence[Standing]) -> Iterator[str]:
    """Yields the scores as a table, with those of each task where there are several."""
    if run.result is None:
        return
    tasks = run.tasks if len(run.tasks) > 1 else ()
    heads = ["search", "holdout", *tasks]
    yield '<details><summary>As a table</summary><div class="table"><table>'
    yield "<tr><th>model</th>" + "".join(f'<th class="n">{escape(head)}</th>' for head in heads) + "</tr>"
    for one in found:
        cells = [number(one.search), number(one.holdout), *(number((one.tasks or {}).get(task)) for task in tasks)]
        yield f"<tr><td>{escape(one.name)}</td>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>"
    yield "</table></div></details>"


def best_level(run: LoadedRun) -> tuple[str, float] | None:
    """Returns the name and the search score of the parent that has the highest."""
    scored = {name: value for name in run.parents if (value := run.value(run.baselines[name])) is not None}
    best = max(scored, key=lambda name: scored[name], default=None)
    return (shown_name(best), scored[best]) if best else None


def _progress(run: LoadedRun) -> Iterator[str]:
    if not run.candidates:
        return
    steps, level = progress(run), best_level(run)
    dashed = ""
    if level:
        outside = level[1] < charts.score_range(steps.scores, [level[1]])[0]
        dashed = (
            f" The best model to merge, {level[0]}, has {number(level[1])}{', below the charts' if outside else ''}."
        )
    yield "<h2>How the search went</h2>"
    yield (
        '<p class="soft">Search scores: a dot for each candidate, <b class="line-best">the best so far</b> and'
        f' <b class="line-middle">the median of each generation</b>.{escape(dashed)}</p>'
    )
    yield '<div class="charts">'
    for by_time in (False, True):
        yield f"<figure>{charts.progress_chart(steps, level, by_time).inline()}</figure>"
    yield "</div>"


def _winner(run: LoadedRun) -> Iterator[str]:
    recipe, best = run.best_recipe, run.best
    if recipe is None or best is None:
        return
    drawing: Drawing = drawing_of(recipe)
    yield f"<h2>The {'winning' if run.result else 'best'} recipe</h2>"
    facts = "; ".join([drawing.title, *drawing.facts])
    yield f'<p class="soft">{escape(shown_name(best.name))}: {escape(facts)}</p>'
    if drawing.panels:
        yield f"<figure>{both_widths(lambda width: picture(drawing, width))}</figure>"
    yield f"<details><summary>As YAML</summary><pre>{escape(recipe.merge_only().to_yaml())}</pre></details>"


def number_of_best(run: LoadedRun, name: str) -> float | None:
    """Returns a searched number of the best candidate, by its name in the record."""
    best = run.best
    return run.numbers[best.number].get(name) if best else None


def _relations(run: LoadedRun) -> Iterator[str]:
    known, scores = relations(run)
    use = layer_use(run)
    if len(scores) < 3:
        return
    yield "<h2>What the score depends on</h2>"
    if use:
        yield '<p class="soft">How many candidates use each layer: the stronger the colour, the more.</p>'
        yield f"<figure>{both_widths(lambda width: charts.layer_use_chart(use, width))}</figure><p></p>"
    shown = known[:MOST_RELATIONS]
    rest = f" The {len(shown)} strongest of {len(known)}; all are in {CANDIDATES}." if len(shown) < len(known) else ""
    yield (
        '<p class="soft">Each candidate’s search score over one number, the strongest rank correlation (Spearman’s ρ)'
        f"  first{'' if use else '; dashed: the best candidate’s'}.{rest}</p>".replace("  ", " ")
    )
    yield '<div class="small">'
    for relation in shown:
        chart = charts.relation_chart(relation, scores, number_of_best(run, relation.name))
        yield (
            f'<figure title="{escape(relation.name)}"><h3>{escape(printable(relation.label))}</h3>{chart.inline()}'
            f"<figcaption>ρ = {round(relation.correlation, 2) + 0.0:+.2f}</figcaption></figure>"
        )
    yield "</div>"


def _changes(found: Changes | None) -> Iterator[str]:
    if found is None:
        return
    yield "<h2>Items gained and lost</h2>"
    where = "holdout" if found.split == "holdout" else "search items; the holdout is not scored yet"
    yield (
        f"<p>Against {escape(found.parent)}, the best model to merge, {escape(found.winner)} does better on"
        f" {len(found.gained):,} items and worse on {len(found.lost):,}; {found.same:,} score the same ({where}).</p>"
    )
    if len(found.tasks) > 1:
        yield "<p>" + escape(_counts(found)) + "</p>"
    for some, mark, kind in ((found.gained, "+", "gain"), (found.lost, "−", "loss")):
        for change in some[:MOST_CHANGES]:
            yield from _change(change, found, f'<span class="{kind}">{mark}</span>')
        if len(some) > MOST_CHANGES:
            more = len(some) - MOST_CHANGES
            yield f'<p class="soft">and {more:,} more {"gained" if kind == "gain" else "lost"}</p>'


def _counts(found: Changes) -> str:
    """Returns how many items of each task are gained and lost."""
    counts = []
    for task in found.tasks:
        gained, lost = (sum(change.task == task for change in some) for some in (found.gained, found.lost))
        counts.append(f"{task}: +{gained:,} −{lost:,}")
    return "; ".join(counts)


def _change(change: Change, found: Changes, mark: str) -> Iterator[str]:
    asked = _question(change.item) if change.item else ""
    head = f"{change.task}, item {change.index}"
    if {change.before, change.after} - {0.0, 1.0}:
        head += f" ({change.before:.3g} → {change.after:.3g})"
    if asked:
        head += f": {shortened(' '.join(asked.split()), 84)}"
    rows: list[tuple[str, str]] = []
    if change.item:
        rows = [("question", asked), ("expected", change.item.target)]
        rows += [("choices", "\n".join(change.item.choices))] if change.item.choices else []
    if change.written:
        rows += [(found.parent, change.written[0]), (found.winner, change.written[1])]
    rows.append(("score", f"{change.before:g} → {change.after:g}"))
    yield f'<details class="item"><summary>{mark} {escape(printable(head))}</summary><dl>'
    for name, text in rows:
        whole = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
        yield f"<dt>{escape(name)}</dt><dd><pre>{escape(whole)}</pre></dd>"
    yield "</dl></details>"


def _question(item: Item) -> str:
    """Returns what an item asks: the last turn of a chat, or the end of a prompt."""
    text = item.question
    return text.rpartition("\n\n")[2] or text


def _cost(run: LoadedRun) -> Iterator[str]:
    cost = spent(run)
    seconds: Mapping[str, float] = cost.seconds
    total = sum(seconds.values())
    if not total:
        return
    yield "<h2>Where the time went</h2>"
    yield f"<figure>{both_widths(lambda width: charts.time_chart(dict(seconds), width))}</figure>"
    scoring = seconds["evaluate"] + seconds["holdout"]
    tokens = cost.prompt_tokens + cost.new_tokens
    rate = f", {tokens / scoring:,.0f} tokens a second" if scoring else ""
    scored = sum(sum(trial.outcome.seconds.values()) > 0 for trial in run.trials) or 1
    each = (seconds["build"] + seconds["evaluate"] + seconds["other"]) / scored
    yield (
        f"<p>{cost.prompt_tokens:,} tokens read, {cost.new_tokens:,} written{rate}. A candidate took"
        f" {duration(each)} on average.</p>"
    )
    environment: Mapping[str, Any] = run.environment
    yield f'<p class="soft">{escape(", ".join(f"{key} {value}" for key, value in environment.items()))}</p>'


def _failures(run: LoadedRun) -> Iterator[str]:
    yield "<h2>Failures</h2>"
    found = failures(run)
    if not found:
        yield "<p>None: every model and candidate was scored.</p>"
        return
    yield "<ul>"
    for error, names in found:
        first = ", ".join(names[:6]) + (f" and {len(names) - 6:,} more" if len(names) > 6 else "")
        yield f'<li>{len(names):,}: {escape(error)} <span class="soft">({escape(first)})</span></li>'
    yield "</ul>"


def _files(run: LoadedRun, folder: Path) -> Iterator[str]:
    yield "<h2>Files</h2><ul>"
    kinds = {
        "result.json": "the scores above as data",
        CANDIDATES: "every candidate: numbers, scores, cost, error",
        "best.yaml": "the recipe above; evomerge apply makes its model",
        "recipe.yaml": "the recipe of the search",
        "completions.json": "what the models wrote on the holdout",
    }
    for name, what in kinds.items():
        path = run.folder / name
        if path.is_file():
            link = quote(Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix())
            yield f'<li><a href="{link}">{name}</a>: {what}</li>'
    where = f"sqlite:///{run.database}" if "://" not in run.database else run.database
    yield f"<li>the record, in Optuna’s dashboard: <code>optuna-dashboard {escape(where)}</code></li>"
    yield f'</ul><p class="soft">evomerge {evomerge.__version__}</p>'
