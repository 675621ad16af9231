"""Output of the commands: plain text, and dictionaries for ``--json``."""

from collections.abc import Sequence
from typing import Any

from producer.cli.doctor import Finding
from producer.jobs.progress import summary
from producer.jobs.status import JobStatus
from producer.planning.layers import LayerPlan
from workers.contract.job import Job

#: Width in characters of the column of aliases.
_ALIASES_WIDTH = 16


def layers(plans: list[LayerPlan], *, dead: bool) -> str:
    """A table of layers with totals, and with ``dead`` the numbers of dead filters. GFLOP are for one gradient step."""
    numbers = ("dead",) if dead else ()
    rows = [("layer", "alias", "kind", "filters", *numbers, "output", "stride", "field", "GFLOP")]
    rows += [
        (
            plan.name,
            _aliases(plan),
            plan.kind,
            str(plan.channels),
            *(("-" if plan.dead is None else str(plan.dead),) if dead else ()),
            _output(plan),
            "-" if plan.stride_px is None else str(plan.stride_px),
            "-" if plan.field_px is None else str(plan.field_px),
            f"{plan.step_gflop:.2f}",
        )
        for plan in plans
    ]
    filters = sum(plan.channels for plan in plans)
    total = f"{_count(len(plans), 'layer')}, {_count(filters, 'filter')}"
    if dead:
        total += f", {sum(plan.dead or 0 for plan in plans):,} dead by their weights"
    return f"{table(rows, names=3)}\n{total}; GFLOP are those of one step"


def plan(job: Job, plans: list[LayerPlan]) -> str:
    """A table of what the job renders and costs."""
    rows = [("layer", "alias", "filters", "rendered", "output", "GFLOP/tile")]
    for layer, entry in zip(job.layers, plans, strict=True):
        rows.append(
            (
                layer.name,
                ",".join(layer.aliases) or "-",
                str(layer.channels),
                layer.filters if len(layer.filters) <= 24 else f"{layer.filters[:21]}...",
                _output(entry),
                f"{entry.step_gflop * job.recipe.work:.1f}",
            )
        )
    total = plan_as_json(job, plans)
    recipe = job.recipe
    return (
        f"{table(rows)}\n"
        f"{job.id}: {_count(total['layers_total'], 'layer')}, {_count(total['tiles_total'], 'tile')}, "
        f"{total['gflop_total'] / 1000:,.1f} TFLOP\n"
        f"{recipe.described}; weights {job.weights.name}, preprocessing {recipe.preprocess.name}"
    )


def plan_as_json(job: Job, plans: list[LayerPlan]) -> dict[str, Any]:
    """The plan for ``--json``."""
    per_layer = [
        {
            "name": layer.name,
            "aliases": list(layer.aliases),
            "channels": layer.channels,
            "filters": layer.filters,
            "tiles": len(layer.selected),
            "output_px": entry.output_px,
            "gflop_per_tile": entry.step_gflop * job.recipe.work,
        }
        for layer, entry in zip(job.layers, plans, strict=True)
    ]
    return {
        "job": job.id,
        "layers": per_layer,
        "layers_total": len(job.layers),
        "tiles_total": len(job.tiles),
        "gflop_total": sum(len(layer.selected) * p.step_gflop for layer, p in zip(job.layers, plans, strict=True))
        * job.recipe.work,
        "recipe": job.recipe.model_dump(mode="json"),
        "weights": job.weights.model_dump(mode="json"),
    }


def status(one: JobStatus, *, queue: bool = True) -> str:
    """The state of one job; without ``queue``, its messages and workers are left out."""
    rows = [("layer", "stored", "failed", "planned")]
    rows += [(entry.layer, str(entry.stored), str(entry.failed), str(entry.planned)) for entry in one.layers]
    lines = [summary(one, None), table(rows)]
    if queue:
        lines.append(
            f"queued: {one.queued}; in flight: {one.in_flight}; re-enqueued: {one.requeued}; "
            f"workers seen: {one.workers}"
        )
    lines += [f"trouble on {machine}: {reason}" for machine, reason in one.troubles.items()]
    lines += [f"no sheet of {layer}: {reason}" for layer, reason in one.problems.items()]
    lines += [f"failed {tile}: {reason}" for tile, reason in one.reasons.items()]
    return "\n".join(lines)


def finding(result: Finding) -> str:
    """One line of ``filterfarm doctor``."""
    return f"{'ok     ' if not result.code else 'PROBLEM'} {result.what}: {result.text}"


def _aliases(plan: LayerPlan) -> str:
    """The aliases, or the first of long ones, so that a table has at most 100 columns."""
    text = ",".join(plan.aliases) or "-"
    return text if len(text) <= _ALIASES_WIDTH else f"{plan.aliases[0]},..."


def _output(plan: LayerPlan) -> str:
    return "x".join(map(str, plan.output_px)) if plan.output_px else "not at this size"


def table(rows: Sequence[tuple[str, ...]], *, names: int = 2) -> str:
    """Rows as aligned text: the first ``names`` columns to the left, the others, numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_row(row, widths, names) for row in rows)


def _row(row: tuple[str, ...], widths: list[int], names: int) -> str:
    cells = (
        cell.ljust(width) if place < names else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join(cells).rstrip()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
