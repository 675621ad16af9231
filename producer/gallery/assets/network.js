"use strict";
// The network: what the job is, and its layers in order, each with a strip of tiles.
(function () {
  const filterfarm = (window.filterfarm = window.filterfarm || {});
  const { el, setText, counts, percent, plural, whole, progress } = filterfarm.dom;
  const { data, router } = filterfarm;
  const STATES = { running: "Running", finished: "Finished", cancelled: "Cancelled", stopped: "Stopped" };

  function network(context) {
    const state = el("p", { class: "state", role: "status" });
    const total = progress("Tiles of the job", 0, 1);
    const rows = new Map(); // layer name -> row
    const list = el("ol", { class: "layers" });
    const node = el("div", { class: "network" },
      el("h1", { tabindex: "-1" }, context.job.model),
      el("p", { class: "lead" }, `Weights ${context.job.weights}. Recipe: ${context.job.described}.`),
      state, total, list, otherJobs());

    function update({ job, route }) {
      setText(state, stateText(job));
      total.hidden = job.state !== "running";
      total.max = job.tiles || 1;
      total.value = job.done + job.failed;
      for (const info of job.layers) {
        let shown = rows.get(info.name);
        if (!shown) {
          shown = row(info, route);
          rows.set(info.name, shown);
          list.append(shown.node);
        }
        shown.update(job, info);
      }
    }

    update(context);
    return { node, update, title: [context.job.id] };
  }

  function stateText(job) {
    const name = STATES[job.state] || `State ${job.state}`;
    const failed = job.failed ? `, ${whole(job.failed)} failed` : "";
    const part = job.state === "running" ? ` (${percent(job.done + job.failed, job.tiles)} %)` : "";
    return `${name}: ${whole(job.done)} of ${plural(job.tiles, "tile")}${part} in ${plural(job.layers.length, "layer")}${failed}.`;
  }

  // A layer's row is made once and updated while the job runs.
  function row(info, route) {
    const href = router.format({ layer: info.name, embed: route.embed });
    const strip = el("img", { loading: "lazy", decoding: "async", alt: "", class: "strip" });
    const numbers = el("p", { class: "counts" });
    const bar = progress(`Tiles of ${info.name}`, 0, 1);
    const node = el("li", null,
      el("h2", null, el("a", { href }, info.name),
        info.aliases.length ? el("span", { class: "alias" }, ` ${info.aliases.join(", ")}`) : null),
      el("div", { class: "striproom" }, strip), numbers, bar);
    let stamp = null;

    function update(job, now) {
      const ended = now.done + now.failed;
      setText(numbers, now.stamp || ended ? counts(ended, now.count, now) : `${plural(now.count, "unit")}, none rendered yet`);
      bar.hidden = ended >= now.count;
      bar.max = now.count || 1;
      bar.value = ended;
      if (now.stamp === stamp) return;
      stamp = now.stamp;
      strip.hidden = !(now.strip > 0);
      if (strip.hidden) return;
      const [height, width] = job.cell_px || [64, 64];
      strip.width = width * now.strip;
      strip.height = height;
      strip.src = `${job.base}strips/${now.name}.webp?v=${now.stamp}`;
    }

    return { node, update };
  }

  // Filled once the list beside the job has loaded, if there is one.
  function otherJobs() {
    const section = el("section", { class: "beside", hidden: true, "aria-labelledby": "beside" },
      el("h2", { id: "beside" }, "Other jobs"));
    data.jobsBeside().then((jobs) => {
      const others = jobs.filter((job) => job.id !== data.ownJob());
      if (!others.length) return;
      section.hidden = false;
      section.append(
        el("ul", null, others.slice(0, 12).map((job) => el("li", null,
          el("a", { href: `../${job.id}/index.html` }, job.id), el("small", null, ` ${job.described || ""}`)))),
        el("p", null, el("a", { href: "../index.html" }, `All ${plural(jobs.length, "job")}`)));
    });
    return section;
  }

  filterfarm.network = network;
})();
