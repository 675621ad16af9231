"use strict";
// A layer: all its units at once, as cells of its atlas.
(function () {
  const filterfarm = (window.filterfarm = window.filterfarm || {});
  const { el, setText, counts, announce, plural, progress } = filterfarm.dom;
  const { router, order, compare, pictures } = filterfarm;

  function layerView(context) {
    const grid = el("ul", { class: "cells" });
    const heading = el("h1", { tabindex: "-1" }, context.layer.name, alias(context.info));
    const numbers = el("p", { class: "counts" });
    const bar = progress(`Tiles of ${context.layer.name}`, 0, 1);
    const legend = el("div", null);
    const empty = el("p", { class: "notice", hidden: true });
    const tools = filterfarm.toolbar(() => focusedUnit());
    const node = el("div", { class: "layer" },
      el("div", { class: "head" }, heading, numbers, neighbours(context)), bar, tools.node, legend,
      el("p", { class: "hidden", id: "keys" }, "Arrow keys move between units, Enter opens one."), empty, grid);

    let cells = new Map(); // unit -> cell
    let shown = []; // entries in their order
    let drawn = {}; // what of the context the cells show

    grid.setAttribute("aria-label", "Units");
    grid.setAttribute("aria-describedby", "keys");
    grid.addEventListener("keydown", move);
    grid.addEventListener("focusin", (event) => event.target.matches("a") && mark(event.target));

    function update(now) {
      const { info, job, layer, route } = now;
      const with_ = now.others.filter((other) => !other.missing);
      const compared = with_.map((other) => `${other.id} ${other.layer.stamp}`).join();
      setText(numbers, counts(info.done + info.failed, info.count, info));
      bar.hidden = info.done + info.failed >= info.count;
      bar.max = info.count;
      bar.value = info.done + info.failed;
      tools.update(now);
      legend.replaceChildren(...(route.with.length ? [compare.legend(now)] : []));
      const layers = [layer, ...with_.map((other) => other.layer)];
      grid.dataset.size = route.size;
      grid.style.setProperty("--pics", layers.length);
      pictures.setSize(grid, layer, route.size);
      if (compared !== drawn.compared) cells = new Map();
      if (layer !== drawn.layer || compared !== drawn.compared) {
        layers.forEach((one, place) => (drawn.layer ? pictures.swapAtlas : pictures.setAtlas)(grid, one, place));
        layer.units.forEach((unit, i) => {
          if (!cells.has(unit)) cells.set(unit, cell(layers, unit));
          cells.get(unit).update(layers, i);
        });
      }
      arrange(layer, route);
      drawn = { layer, compared };
      for (const one of cells.values()) one.link(route);
      sharpen(job, route);
    }

    function arrange(layer, route) {
      const next = order.arranged(layer, route);
      const focused = grid.contains(document.activeElement) ? document.activeElement : null;
      place(next.map((i) => cells.get(layer.units[i]).node));
      if (focused && focused !== document.activeElement && grid.contains(focused)) focused.focus({ preventScroll: true });
      shown = next;
      const current = grid.querySelector("a[tabindex='0']");
      if (!current && grid.firstElementChild) mark(grid.firstElementChild.firstElementChild);
      empty.hidden = shown.length > 0;
      setText(empty, layer.units.length ? "No unit has the chosen status." : "No unit is rendered yet.");
      if (drawn.layer === layer) announce(`${plural(shown.length, "unit")} shown`);
    }

    // Later units are inserted among the others, which keep focus and selection; another order replaces all of them.
    function place(nodes) {
      let kept = 0;
      for (const node of nodes) if (grid.children[kept] === node) kept++;
      if (kept < grid.childElementCount) grid.replaceChildren(...nodes);
      else nodes.forEach((node, k) => grid.children[k] !== node && grid.insertBefore(node, grid.children[k] || null));
    }

    // Large cells get the tiles themselves, each when it comes into sight.
    function sharpen(job, route) {
      for (const one of cells.values()) one.sharpen(route.size === "large");
    }

    // Tab reaches one cell; arrow keys move to the others.
    function mark(link) {
      for (const other of grid.querySelectorAll("a[tabindex='0']")) other.tabIndex = -1;
      link.tabIndex = 0;
    }

    function move(event) {
      const link = event.target.closest("a");
      if (!link || event.ctrlKey || event.metaKey || event.altKey) return;
      const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
      const here = [...grid.children].indexOf(link.parentNode), last = grid.childElementCount - 1;
      const there = { ArrowLeft: here - 1, ArrowRight: here + 1, ArrowUp: here - columns, ArrowDown: here + columns,
        Home: 0, End: last }[event.key];
      if (there === undefined) return;
      event.preventDefault();
      if (there >= 0 && there <= last) grid.children[there].firstElementChild.focus();
    }

    function focusedUnit() {
      const link = grid.querySelector("a[tabindex='0']");
      return link ? Number(link.dataset.unit) : context.layer.units[0];
    }

    // Shows and focuses a unit that a person comes back from.
    function reveal(unit) {
      const one = cells.get(unit);
      if (!one || !one.node.isConnected) return false;
      one.node.scrollIntoView({ block: "center" });
      one.anchor.focus({ preventScroll: true });
      return true;
    }

    update(context);
    return { node, update, reveal, title: [context.layer.name, context.job.id] };
  }

  function alias(info) {
    return info.aliases.length ? el("span", { class: "alias" }, ` ${info.aliases.join(", ")}`) : null;
  }

  // Links to the layers before and after.
  function neighbours({ job, info, route }) {
    const here = job.layers.indexOf(info);
    const link = (other, rel, sign) => other && el("a", { rel, href: router.link(route, { layer: other.name,
      by: route.by.startsWith("similar") ? "index" : route.by }) }, sign(other.name));
    return el("nav", { class: "around", "aria-label": "Layers before and after" },
      link(job.layers[here - 1], "prev", (name) => `← ${name}`), link(job.layers[here + 1], "next", (name) => `${name} →`));
  }

  // One unit: a link with a sprite for each compared layer. It is made once and updated with later data.
  function cell(layers, unit) {
    const sprites = layers.map((layer, place) => el("span", { class: `pic p${place}` }));
    const anchor = el("a", { tabindex: "-1", "data-unit": unit }, sprites);
    const node = el("li", null, anchor);
    let current = layers, large = false;

    function update(now, i) {
      current = now;
      anchor.setAttribute("aria-label", pictures.label(now[0], i));
      anchor.title = pictures.label(now[0], i);
      now.forEach((layer, place) => pictures.setSprite(sprites[place], layer, layer.position.get(unit), place));
    }

    function link(route) {
      anchor.href = router.link(route, { unit, layer: route.layer });
    }

    function sharpen(wanted) {
      if (wanted === large) return;
      large = wanted;
      sprites.forEach((sprite, place) => {
        const layer = current[place], i = layer.position.get(unit);
        const picture = wanted && i !== undefined && layer.status(i) !== "failed";
        sprite.replaceChildren(...(picture ? [el("img", { src: layer.tile(unit), loading: "lazy", alt: "" })] : []));
      });
    }

    return { node, anchor, update, link, sharpen };
  }

  filterfarm.layer = layerView;
})();
