"use strict";
// Other jobs beside this one: loading their layer, and choosing which.
(function () {
  const filterfarm = (window.filterfarm = window.filterfarm || {});
  const { el } = filterfarm.dom;
  const { data, router } = filterfarm;
  const loaded = new Map(); // job id, layer name -> promise of {id, job, layer} or {id, missing}

  async function load(id, info) {
    try {
      const job = await data.job(id);
      const found = [info.name, ...info.aliases].map(job.find).find(Boolean);
      if (!found) return { id, missing: `${id} has no layer ${info.name}.` };
      return { id, job, layer: await data.layer(job, found) };
    } catch (error) {
      if (!(error instanceof data.Unavailable)) throw error;
      return { id, missing: data.isName(id) ? `${id} has nothing to show: ${error.message}` : error.message };
    }
  }

  // The route's jobs, each with its layer of the same name or alias, or with the reason why there is none.
  function others(route, info) {
    const ids = route.with.filter((id) => id !== data.ownJob());
    return Promise.all(ids.map((id) => {
      const key = `${id}/${info.name}`;
      if (!loaded.has(key)) loaded.set(key, load(id, info));
      return loaded.get(key);
    }));
  }

  // What was missing or unfinished is loaded again when it is next asked for.
  function forgetUnfinished() {
    for (const [key, promise] of loaded) {
      promise.then((other) => {
        if (other.missing || other.job.state === "running") loaded.delete(key);
      });
    }
  }

  // One line a job: what is shown from left to right, and what is missing.
  function legend(context) {
    const shown = [context, ...context.others.filter((other) => !other.missing)];
    const items = shown.map(({ job }) => el("li", null, el("b", null, job.id), ` ${job.weights}, ${job.described}`));
    const missing = context.others.filter((other) => other.missing);
    return el("div", { class: "legend" },
      shown.length > 1 ? el("ol", { "aria-label": "Compared jobs, from left to right" }, items) : null,
      missing.map((other) => el("p", { class: "missing" }, other.missing)));
  }

  // A menu that adds and removes jobs: those of the bucket that have the layer, and a field for any other id.
  function chooser() {
    const field = el("input", { type: "text", name: "job", autocomplete: "off", spellcheck: "false" });
    const form = el("form", { onsubmit: add }, el("label", null, "Job id ", field), " ", el("button", null, "Add"));
    const list = el("ul", { class: "choices" });
    const full = el("p", { class: "quiet" });
    const node = el("details", { class: "menu", ontoggle: () => node.open && update(context) },
      el("summary", null, "Compare"), el("div", { class: "sheet" }, list, full, form));
    let context = null;

    function add(event) {
      event.preventDefault();
      if (field.value.trim()) choose(field.value.trim(), true);
      field.value = "";
    }

    function choose(id, wanted) {
      const route = router.current();
      const ids = route.with.filter((other) => other !== id);
      if (wanted && ids.length < router.MOST_COMPARED) ids.push(id);
      router.adjust(router.link(route, { with: ids }));
    }

    async function update(now) {
      context = now;
      if (!node.open) return;
      const { info, route } = context;
      const found = (await data.jobsBeside())
        .filter((job) => job.id !== data.ownJob() && (job.layer_names || []).some((name) => name === info.name))
        .map((job) => [job.id, job.described || ""]);
      for (const id of route.with) if (!found.some(([other]) => other === id)) found.push([id, ""]);
      const focused = list.contains(document.activeElement) && document.activeElement.value;
      list.replaceChildren(...found.map(([id, described]) => {
        const checked = route.with.includes(id);
        const box = el("input", { type: "checkbox", value: id, checked, onchange: () => choose(id, box.checked) });
        box.disabled = !checked && route.with.length >= router.MOST_COMPARED;
        return el("li", null, el("label", null, box, " ", id, described ? el("small", null, ` ${described}`) : null));
      }));
      const again = [...list.querySelectorAll("input")].find((box) => box.value === focused);
      if (again) again.focus();
      full.textContent = found.length ? `Up to ${router.MOST_COMPARED} jobs beside this one.`
        : "No other job with this layer is listed beside this one.";
    }

    return { node, update };
  }

  filterfarm.compare = { others, forgetUnfinished, legend, chooser };
})();
