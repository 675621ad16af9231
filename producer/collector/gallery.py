"""index.html of a job: all tiles of all layers on one page, readable without a server.

``index.html#features.24/17`` and, with a layer's alias, ``index.html#block5_conv1/17`` scroll to a tile. A tile's
number is its link; its image links to the PNG.
"""

import html
import json

from workers.contract.job import Job, Layer
from workers.contract.recipe import Recipe

_STYLE = """
body { background: #111; color: #ddd; font: 15px/1.5 system-ui, sans-serif; margin: 2rem; }
a { color: #8cf; }
h2 { margin: 2.5rem 0 .5rem; }
.tiles { display: flex; flex-wrap: wrap; gap: 6px; }
figure { margin: 0; width: SIZEpx; border: 2px solid transparent; }
figure img, figure div { display: block; width: 100%; aspect-ratio: ASPECT; }
figure.found { outline: 3px solid #fd4; }
figure.dead { border-color: #d62828; }
figure.rescued figcaption { color: #e6a01e; }
figure.failed div { background: #281010; font-size: 11px; overflow: auto; overflow-wrap: anywhere; }
figcaption a { color: inherit; text-decoration: none; }
figcaption { font-size: 11px; color: #999; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
"""

# Element ids are layer names; the script resolves aliases.
_SCRIPT = """
const aliases = JSON.parse(document.getElementById("aliases").textContent);
function go() {
  let hash = location.hash.slice(1);
  try { hash = decodeURIComponent(hash); } catch { /* malformed percent encoding */ }
  const [name, filter] = hash.split("/");
  const layer = aliases[name] || name;
  const found = document.getElementById(filter === undefined ? layer : layer + "/" + filter);
  document.querySelectorAll(".found").forEach(e => e.classList.remove("found"));
  if (found) { found.classList.add("found"); found.scrollIntoView({block: "center"}); }
}
addEventListener("hashchange", go);
addEventListener("load", go);
"""


def page(job: Job, statuses: dict[tuple[str, int], str], reasons: dict[tuple[str, int], str]) -> bytes:
    """The page as UTF-8 HTML.

    ``statuses`` maps (layer, filter) to live, rescued, dead or failed; live if absent. ``reasons`` maps failed ones to
    the reason.
    """
    recipe = job.recipe
    facts = f"{job.model} with {job.weights.name} · {recipe.described} · {len(job.tiles)} tiles"
    aliases = {alias: layer.name for layer in job.layers for alias in layer.aliases}
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{_text(job.id)}</title>",
        f"<style>{_style(recipe)}</style></head><body>",
        f'<h1>{_text(job.id)}</h1><p>{_text(facts)} · <a href="job.json">job.json</a></p><nav>',
        " · ".join(map(_link, job.layers)),
        "</nav>",
    ]
    for layer in job.layers:
        name = _text(layer.name)
        parts.append(
            f'<section><h2 id="{name}">{_text(_title(layer.name, layer.aliases))}</h2><p>{len(layer.selected)} of '
            f'{layer.channels} filters · <a href="grids/{name}.png">sheet</a> · '
            f'<a href="layers/{name}.json">records</a></p><div class="tiles">'
        )
        for filter_ in layer.selected:
            status, reason = statuses.get((layer.name, filter_), "live"), reasons.get((layer.name, filter_), "")
            parts.append(_figure(layer.name, filter_, status, reason, animated=recipe.frames > 0))
        parts.append("</div></section>")
    # "</" would end the script element early.
    data = json.dumps(aliases).replace("</", "<\\/")
    parts.append(
        f'<script type="application/json" id="aliases">{data}</script><script>{_SCRIPT}</script></body></html>'
    )
    return "\n".join(parts).encode()


def _style(recipe: Recipe) -> str:
    """The style sheet: tiles are shown at most in their own width, and at most 150 px per image of a diverse tile."""
    height, width = recipe.tile_px
    shown = min(width, 150 * recipe.diversity)
    return _STYLE.replace("SIZE", str(shown)).replace("ASPECT", f"{width} / {height}")


def _figure(layer: str, filter_: int, status: str, reason: str, *, animated: bool) -> str:
    here = f"{_text(layer)}/{filter_}"
    note = "" if status == "live" else f" {status}"
    image = (
        f'<a href="tiles/{here}.png"><img loading="lazy" src="tiles/{here}.png" '
        f'alt="filter {filter_} of {_text(layer)}"></a>'
    )
    if status == "failed":
        image = f"<div>{_text(reason)}</div>"
    animation = f' · <a href="frames/{here}.webp">animation</a>' if animated and status != "failed" else ""
    return (
        f'<figure id="{here}" class="{_text(status)}">{image}'
        f'<figcaption><a href="#{here}">{filter_}{_text(note)}</a>{animation}</figcaption></figure>'
    )


def _link(layer: Layer) -> str:
    return f'<a href="#{_text(layer.name)}">{_text(_title(layer.name, layer.aliases))}</a>'


def _title(name: str, aliases: tuple[str, ...]) -> str:
    return f"{name} ({', '.join(aliases)})" if aliases else name


def _text(text: str) -> str:
    return html.escape(text, quote=True)
