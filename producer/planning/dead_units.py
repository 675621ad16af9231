"""The units of a model's layers that are dead by their weights. Loads the weights."""

from collections.abc import Sequence
from dataclasses import replace

from producer.planning.classes import lacks_classifier, with_class_count
from producer.planning.layers import LayerPlan
from workers.contract.filter_ranges import format_filters


def with_dead_units(plans: Sequence[LayerPlan], model_name: str, text: str) -> tuple[list[LayerPlan], list[str]]:
    """The plans with ``dead`` and ``dead_filters`` by ``--weights text``, and lines on what was chosen in a file.

    Raises WeightsMissing, WeightsUnreadable, WeightsDoNotFit, UnknownModel.
    """
    from workers.networks import dead_units, tracing, units, weights

    chosen, checkpoint = weights.choose(model_name, text)
    notes: list[str] = []
    if checkpoint is not None and not model_name.startswith("pt2:"):
        classifier = any(plan.kind != "conv" for plan in plans)
        found = weights.check(model_name, chosen, checkpoint, classifier=classifier)
        notes = [f"weights {chosen.name}: {line}" for line in found]
    plans = with_class_count(list(plans), model_name, chosen, checkpoint)
    model = weights.load(model_name, chosen, checkpoint, seed=0)
    named = units.named(model, tracing.trace(model))

    def measured(plan: LayerPlan) -> LayerPlan:
        node = named[plan.name].node
        if not dead_units.is_known(model, node) or lacks_classifier(plan, chosen):
            return plan
        dead = dead_units.inert(model, node, "activation").nonzero().flatten().tolist()
        return replace(plan, dead=len(dead), dead_filters=format_filters(dead))

    return [measured(plan) for plan in plans], notes
