"use strict";
// The layer's tools: find, sort, filter, size, compare, zoom, downloads. Each choice is a change of the link.
(function () {
  const filterfarm = (window.filterfarm = window.filterfarm || {});
  const { el, announce, whole } = filterfarm.dom;
  const { router, order, compare } = filterfarm;

  function toolbar(suggestSimilar) {
    let context = null;
    const adjust = (changes) => router.adjust(router.link(router.current(), changes));

    const names = el("datalist", { id: "names" });
    const find = el("input", { type: "search", id: "find", size: 8, autocomplete: "off", list: "names" });
    const findForm = el("form", { role: "search", onsubmit: open }, el("label", { for: "find" }, "Find unit "), find, names);

    const by = el("select", { id: "by", onchange: sort },
      [["index", "index"], ["activation", "activation"], ["gain", "gain in activation"], ["similar", "similarity to unit"]]
        .map(([value, text]) => el("option", { value }, text)));
    const similar = el("input", { type: "number", min: 0, class: "short", "aria-label": "Sort by similarity to unit",
      onchange: sort });
    const size = el("select", { id: "size", onchange: () => adjust({ size: size.value }) },
      ["small", "normal", "large"].map((value) => el("option", { value }, value)));

    const boxes = new Map(router.SHOWN.map((status) => [status,
      { box: el("input", { type: "checkbox", value: status, onchange: filter }), count: el("span", { class: "quiet" }) }]));
    const show = el("fieldset", { class: "show" }, el("legend", { class: "hidden" }, "Show units by status"),
      [...boxes].map(([status, { box, count }]) => el("label", { class: `tag ${status}` }, box, ` ${status} `, count)));

    const chooser = compare.chooser();
    const zoom = el("a", null, "Zoom");
    const sheet = el("a", null, "Sheet");
    const records = el("a", null, "Records");
    const node = el("div", { class: "tools" },
      findForm,
      el("div", { class: "tool" }, el("label", { for: "by" }, "Sort by "), by, similar),
      show,
      el("div", { class: "tool" }, el("label", { for: "size" }, "Size "), size),
      el("div", { class: "tool links" }, chooser.node, zoom, sheet, records));

    function open(event) {
      event.preventDefault();
      const { layer } = context;
      const unit = order.findUnit(layer, find.value);
      if (unit !== null) return router.go(router.link(router.current(), { unit }));
      if (find.value.trim()) announce(`No unit ${find.value.trim()} in ${layer.name}.`);
      found.textContent = find.value.trim() ? `No unit ${find.value.trim()} in ${layer.name}.` : "";
      return undefined;
    }
    const found = el("p", { class: "missing" });
    findForm.append(found);
    find.addEventListener("input", () => { found.textContent = ""; });

    function sort() {
      if (by.value !== "similar") return adjust({ by: by.value });
      const wanted = similar.value === "" ? suggestSimilar() : Number(similar.value);
      return adjust({ by: `similar:${wanted}` });
    }

    function filter() {
      const chosen = router.SHOWN.filter((status) => boxes.get(status).box.checked);
      adjust({ show: chosen.length === router.SHOWN.length ? null : chosen });
    }

    function update(now) {
      const fresh = !context || context.layer !== now.layer;
      context = now;
      const { info, job, layer, route } = now;
      const [kind, unit] = route.by.split(":");
      by.value = kind;
      similar.hidden = kind !== "similar";
      if (unit !== undefined) similar.value = unit;
      size.value = route.size;
      for (const [status, { box }] of boxes) box.checked = !route.show || route.show.includes(status);
      zoom.href = router.format({ layer: route.layer, zoom: true });
      sheet.href = `${job.base}grids/${info.name}.png`;
      sheet.hidden = !info.sheet;
      records.href = `${job.base}layers/${info.name}.json`;
      chooser.update(now);
      if (!fresh) return;
      const counted = new Map();
      layer.units.forEach((_, i) => counted.set(layer.status(i), (counted.get(layer.status(i)) || 0) + 1));
      for (const [status, { box, count }] of boxes) {
        count.textContent = whole(counted.get(status) || 0);
        box.parentNode.hidden = !counted.has(status) && box.checked;
      }
      names.replaceChildren(...layer.units.map((one) => layer.unitName(one)).filter(Boolean)
        .map((value) => el("option", { value })));
    }

    return { node, update };
  }

  filterfarm.toolbar = toolbar;
})();
