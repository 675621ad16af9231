"use strict";
// A unit: its picture as large as it fits, its record in words, its neighbours and the units most alike.
(function () {
  const filterfarm = (window.filterfarm = window.filterfarm || {});
  const { el, announce, decimal, whole, plural } = filterfarm.dom;
  const { router, order, compare, pictures } = filterfarm;
  const ALIKE = 8;
  const MEANING = {
    live: "Live: the unit is active on the start image, or became active without help.",
    rescued: "Rescued: the unit was inactive on the start image; the rescue made it active on the final image.",
    dead: "Dead: the unit is inactive on every image that was tried.",
    failed: "Failed: there is no picture of this unit.",
    other: "The unit's status is one of a later version; its records name it.",
  };

  function unitView(context) {
    const { info, layer, route } = context;
    const i = layer.position.get(route.unit);
    const body = el("div", null);
    const chooser = compare.chooser();
    const shown = order.arranged(layer, route);
    // A unit that the filter hides has its neighbours by index.
    const line = shown.includes(i) ? shown : order.arranged(layer, { ...route, by: "index", show: null });
    const [before, after] = [line[line.indexOf(i) - 1], line[line.indexOf(i) + 1]].map((entry) =>
      entry === undefined ? null : router.link(route, { unit: layer.units[entry] }));
    const name = layer.unitName(route.unit);
    const node = el("article", { class: "unit" },
      el("div", { class: "head" },
        el("h1", { tabindex: "-1" }, `${layer.name} / ${route.unit}`,
          name || info.aliases.length ? el("span", { class: "alias" }, ` ${name || info.aliases.join(", ")}`) : null),
        el("nav", { class: "around", "aria-label": "Units before and after" },
          before && el("a", { rel: "prev", href: before }, "← previous"),
          after && el("a", { rel: "next", href: after }, "next →"))),
      body, el("div", { class: "tools" }, chooser.node), alike(context, i));
    let drawn = null;

    function update(now) {
      chooser.update(now);
      const place = now.layer.position.get(route.unit);
      const what = JSON.stringify([now.layer.data.status[place], now.others.map((other) => [other.id, !!other.missing])]);
      if (what === drawn) return;
      drawn = what;
      const shownJobs = [now, ...now.others.filter((other) => !other.missing)];
      body.className = shownJobs.length > 1 ? "compared" : "single";
      body.replaceChildren(
        ...shownJobs.map((one) => panel(one, route, shownJobs.length > 1)),
        ...now.others.filter((other) => other.missing).map((other) => el("p", { class: "missing" }, other.missing)));
    }

    update(context);
    prefetch(layer, line, line.indexOf(i));
    return { node, update, before, after, title: [`${layer.name} / ${route.unit}`, context.job.id] };
  }

  // Picture and record of the unit in one job.
  function panel({ job, layer }, route, compared) {
    const i = layer.position.get(route.unit);
    const head = compared ? el("h2", null, el("a", { href: `${job.base}index.html${router.format({ layer: layer.name, unit: route.unit })}` }, job.id)) : null;
    if (i === undefined) {
      return el("section", { class: "panel" }, head, el("p", { class: "missing" }, `${job.id} has no unit ${route.unit} in ${layer.name}.`));
    }
    return el("section", { class: "panel" }, head, figure(job, layer, i), record(job, layer, i, route));
  }

  function figure(job, layer, i) {
    const unit = layer.units[i];
    if (layer.status(i) === "failed") return el("div", { class: "large failed" }, el("p", null, "No picture"));
    const [height, width] = job.tile_px || [224, 224];
    const image = pictures.tile(layer, i);
    const holder = el("div", { class: "large" }, image);
    holder.style.setProperty("--tw", width);
    holder.style.setProperty("--th", height);
    image.addEventListener("error", () => {
      image.replaceWith(el("p", null, "The picture cannot be loaded. ", el("a", { href: layer.tile(unit) }, "Open the file")));
    });
    const film = job.frames ? filmButton(job, layer, unit, image) : null;
    return el("figure", null, holder, el("figcaption", { class: "actions" }, film,
      el("a", { href: layer.tile(unit), download: `${layer.name}-${unit}.png` }, "Download PNG"), copyButton()));
  }

  // Exchanges picture and film. The film starts only when asked for.
  function filmButton(job, layer, unit, image) {
    const button = el("button", { type: "button", "aria-pressed": "false", onclick: toggle }, "Play film");
    function toggle() {
      const plays = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", plays);
      button.textContent = plays ? "Show picture" : "Play film";
      image.src = plays ? `${job.base}frames/${layer.name}/${unit}.webp` : layer.tile(unit);
      image.alt = `${plays ? "Optimisation of unit" : "Unit"} ${unit} of ${layer.name}`;
    }
    return button;
  }

  // Copies the link without its "&embed". Without a clipboard, as on http, the link is shown selected.
  function copyButton() {
    const field = el("input", { type: "text", readonly: true, hidden: true, "aria-label": "Link to this unit" });
    const button = el("button", { type: "button", onclick: copy }, "Copy link");
    async function copy() {
      const address = location.href.split("#")[0] + router.link(router.current(), { embed: false });
      try {
        await navigator.clipboard.writeText(address);
        announce("Link copied");
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy link"; }, 2000);
      } catch {
        field.value = address;
        field.hidden = false;
        field.focus();
        field.select();
      }
    }
    return [button, field];
  }

  function record(job, layer, i, route) {
    const status = layer.status(i), value = (column) => layer.value(column, i);
    const unit = layer.units[i];
    const rows = [];
    const add = (term, text) => text !== null && text !== undefined && text !== "" && rows.push(el("dt", null, term), el("dd", null, String(text)));
    if (status === "failed") {
      add("Reason", layer.data.reasons && layer.data.reasons[unit]);
      add("Attempts", value("attempts"));
    } else {
      add("Activation", `${decimal(value("activation"))} on the final image`);
      add("Before", `${decimal(value("start"))} on the start image`);
      add("Stored", `${decimal(value("stored"))} on the picture of 8 bits`);
      add("Effort", effort(value));
      add("Seed", value("seed"));
      add("Device", [value("device"), value("precision")].filter(Boolean).join(", "));
      add("Versions", Object.entries(layer.data.versions || {}).map(([name, version]) => `${name} ${version}`).join(", "));
    }
    add("Recipe", job.described);
    add("Network", `${job.model}, weights ${job.weights}`);
    return el("div", { class: "record" },
      el("p", { class: `meaning ${status}` }, MEANING[status]),
      el("dl", null, rows), recipe(job),
      el("p", { class: "more" }, el("a", { href: router.link(route, { unit: null, by: `similar:${unit}` }) },
        "Sort the layer by similarity to this unit"), el("br"), el("a", { href: `${job.base}layers/${layer.name}.json` }, "Records of the layer")));
  }

  function effort(value) {
    const parts = [plural(value("steps"), "step")];
    if (value("restarts")) parts.push(plural(value("restarts"), "restart"));
    if (value("attempts") > 1) parts.push(`attempt ${whole(value("attempts"))}`);
    parts.push(`${decimal(value("seconds"))} s`);
    return parts.join(", ");
  }

  function recipe(job) {
    const values = Object.entries(job.recipe || {}).filter(([, value]) => value !== null && typeof value !== "object");
    return el("details", null, el("summary", null, "All values of the recipe"),
      el("dl", null, values.map(([name, value]) => [el("dt", null, name), el("dd", null, String(value))])));
  }

  function alike({ layer, route }, i) {
    const found = order.mostAlike(layer, i, ALIKE);
    if (!found.length) return null;
    const list = el("ul", { class: "cells", "aria-labelledby": "alike" }, found.map(({ entry, cosine }) => el("li", null,
      el("a", { href: router.link(route, { unit: layer.units[entry] }), "data-unit": layer.units[entry],
        "aria-label": `${pictures.label(layer, entry)}, cosine ${cosine.toFixed(2)}`, title: `cosine ${cosine.toFixed(2)}` },
      pictures.sprite(layer, entry, 0)))));
    list.style.setProperty("--pics", 1);
    pictures.setAtlas(list, layer, 0);
    pictures.setSize(list, layer, "normal");
    return el("section", { class: "alike" }, el("h2", { id: "alike" }, "Most alike"),
      el("p", { class: "quiet" }, "By the cosine of the pictures' descriptors."), list);
  }

  function prefetch(layer, line, here) {
    for (const entry of [line[here + 1], line[here - 1]]) {
      if (entry !== undefined && layer.status(entry) !== "failed") new Image().src = layer.tile(layer.units[entry]);
    }
  }

  filterfarm.unit = unitView;
})();
