"""Class names in options: the file of ``--classes``, and names in ``--filters``."""

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from producer.planning.layers import LayerPlan
from producer.planning.options import Options
from workers.contract.errors import BadFilters, BadOption, one_line
from workers.contract.job import MAX_NAME_LETTERS, Weights, is_unit_name
from workers.contract.recipe import Recipe

#: Largest number of bytes of a file of class names.
_MOST_BYTES = 50_000_000


def check_classifier(chosen: list[LayerPlan], model: str, weights: Weights) -> None:
    """Raise BadOption if the weights lack the classifier that a layer is, or is part of."""
    unknown = [plan.name for plan in chosen if lacks_classifier(plan, weights)]
    if unknown:
        raise BadOption(
            f"the weights {weights.name} of {model} have no classifier, and so no {unknown[0]}; use other --weights, "
            "such as IMAGENET1K_V1"
        )


def lacks_classifier(plan: LayerPlan, weights: Weights) -> bool:
    """True if the layer is a classifier, or part of one, that the weights lack."""
    from workers.networks import classes

    return plan.kind in {"linear", "logits"} and not plan.has_map and not classes.has_classifier(weights)


def with_class_count(chosen: list[LayerPlan], model: str, weights: Weights, checkpoint: Path | None) -> list[LayerPlan]:
    """The plans, with as many logits as a checkpoint has classes. Raises WeightsUnreadable and WeightsDoNotFit."""
    from workers.networks import weights as loading

    if checkpoint is None or model.startswith("pt2:") or not any(plan.kind == "logits" for plan in chosen):
        return chosen
    count = loading.class_count(model, weights, checkpoint)
    return [replace(plan, channels=count) if count and plan.kind == "logits" else plan for plan in chosen]


def class_names(chosen: list[LayerPlan], recipe: Recipe, options: Options, weights: Weights) -> tuple[str, ...]:
    """The names of the classes, () if they are not known or no tile is of a single class; raises BadOption."""
    from workers.networks import classes

    count = next((plan.channels for plan in chosen if plan.kind == "logits"), None)
    if count is None or recipe.objective != "filter":
        if options.classes is not None:
            raise BadOption("--classes names the units of logits; choose --layers logits with --objective filter")
        return ()
    if options.classes is not None:
        return read_classes(options.classes, count)
    names = classes.class_names(options.model, weights)
    return names if len(names) == count else ()


def read_classes(path: Path, count: int) -> tuple[str, ...]:
    """The names in a file: one per line, or a JSON list. Raises BadOption unless they are ``count`` names."""
    name = f"--classes {str(path)[:200]!r}"
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise BadOption(f"{name} has more than {_MOST_BYTES // 1_000_000} MB; write one name per line")
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except (OSError, ValueError) as error:
        raise BadOption(
            f"cannot read {name} ({one_line(error, 100)}); write one name per line, or a JSON list"
        ) from None
    if not all(isinstance(one, str) for one in names):
        raise BadOption(f"{name} is no list of names; write one name per line, or a JSON list of texts")
    names = [one.strip() for one in names]
    while names and not names[-1]:
        names.pop()
    bad = next((place for place, one in enumerate(names) if not is_unit_name(one)), None)
    if bad is not None:
        raise BadOption(
            f"{name}: name {bad} is {names[bad][:40]!r}; a name has 1 to {MAX_NAME_LETTERS} printable characters"
        )
    if len(names) != count:
        raise BadOption(f"{name} has {len(names)} names, and the network has {count} classes; write one for each")
    return tuple(names)


def numbered(text: str, chosen: list[LayerPlan], names: Sequence[str]) -> str:
    """``--filters`` with numbers in place of class names, whatever their case. Raises BadFilters.

    A name may contain commas: the longest is taken.
    """
    layer = next((plan.name for plan in chosen if plan.kind != "logits"), chosen[0].name)
    names = names if chosen[0].kind == "logits" and layer == chosen[0].name else ()
    parts = [part.strip() for part in text.split(",")]
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        numbers.setdefault(name.casefold(), []).append(number)
    result: list[str] = []
    place = 0
    while place < len(parts):
        if not _is_name(parts[place]):
            result.append(parts[place])
            place += 1
            continue
        tries = ((end, ", ".join(parts[place:end])) for end in range(len(parts), place, -1))
        end, found = next(
            ((end, numbers[written]) for end, joined in tries for written in _spellings(joined) if written in numbers),
            (0, []),
        )
        if len(found) != 1:
            raise _unclear(", ".join(parts[place:end]) if found else parts[place], found, names, layer)
        result.append(str(found[0]))
        place = end
    return ",".join(result)


def _is_name(part: str) -> bool:
    """True if a part of ``--filters`` can be no number, no range and not ``all``."""
    return part != "all" and re.search(r"[^\W\d_]", part) is not None


def _spellings(joined: str) -> tuple[str, str]:
    return joined.casefold(), joined.replace(", ", ",").casefold()


def _unclear(part: str, found: list[int], names: Sequence[str], layer: str) -> BadFilters:
    if not names:
        return BadFilters(
            f"cannot read filters {part[:80]!r}: the units of {layer} have no names; write 'all', a range '0-63', or a "
            "list '3,5,8-11' (classes have names with --layers logits alone and trained --weights or --classes FILE)"
        )
    if found:
        several = ", ".join(map(str, found[:8]))
        return BadFilters(f"several classes of {layer} are named {part[:80]!r}; write the number: {several}")
    wanted = part.casefold()
    within = [name for name in names if wanted in name.casefold()]
    folded = {name.casefold(): name for name in names}
    near = within or [folded[name] for name in difflib.get_close_matches(wanted, folded, n=4, cutoff=0.5)]
    more = f" and {len(near) - 6} more" if len(near) > 6 else ""
    hint = f"nearest: {', '.join(near[:6])}{more}" if near else f"such as {', '.join(names[:3])}"
    return BadFilters(f"no class {part[:80]!r} in {layer}; {hint}")
