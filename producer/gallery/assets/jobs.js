"use strict";
// The page of a bucket: its jobs, with links to each and to the comparison of two.
(function () {
  const { dom, data, router } = window.filterfarm;
  const { el, setText, notice, plural, percent, whole, progress } = dom;
  const REFRESH_MS = 5000;
  const main = document.getElementById("main");
  const chosen = new Set();
  const rows = new Map(); // job id -> row
  const list = el("ol", { class: "layers jobs" });
  const compareLink = el("a", { class: "button" }, "Compare");
  const compareText = el("p", { class: "quiet", role: "status" }, "Select two jobs of the same network to compare them.");
  let jobs = [];

  function row(job) {
    const box = el("input", { type: "checkbox", "aria-label": `Compare ${job.id}`, onchange: choose });
    const state = el("p", { class: "counts" });
    const bar = progress(`Tiles of ${job.id}`, 0, 1);
    const strip = el("img", { loading: "lazy", decoding: "async", alt: "", class: "strip" });
    const node = el("li", null, el("h2", null, box, " ", el("a", { href: `${job.id}/index.html` }, job.id)),
      el("div", { class: "striproom" }, strip), el("p", { class: "lead" }, `${job.model}, weights ${job.weights}. ${job.described}.`), state, bar);
    let shownStrip = null;

    function choose() {
      if (box.checked) chosen.add(job.id);
      else chosen.delete(job.id);
      updateCompare();
    }

    function update(now) {
      const ended = now.done + now.failed, failed = now.failed ? `, ${whole(now.failed)} failed` : "";
      setText(state, now.state === "finished" ? `${plural(now.done, "tile")} in ${plural(now.layers, "layer")}${failed}`
        : `${now.state}, ${percent(ended, now.tiles)} % of ${plural(now.tiles, "tile")}${failed}`);
      bar.hidden = now.state !== "running";
      bar.max = now.tiles || 1;
      bar.value = ended;
      const source = safeStrip(now);
      strip.hidden = !source;
      if (source && (source !== shownStrip || now.state === "running")) strip.src = `${source}?v=${now.updated}`;
      shownStrip = source;
    }

    return { node, update };
  }

  // Only a strip of the job itself: "<job>/strips/<layer>.webp".
  function safeStrip(job) {
    const parts = typeof job.strip === "string" ? job.strip.split("/") : [];
    return parts.length === 3 && parts[0] === job.id && parts[1] === "strips" && data.isName(parts[2]) ? job.strip : null;
  }

  // Links the first layer that the chosen jobs share.
  function updateCompare() {
    const [first, second] = jobs.filter((job) => chosen.has(job.id));
    compareLink.hidden = true;
    if (chosen.size !== 2) {
      return setText(compareText, chosen.size > 2 ? "Select two jobs only; more can be added on the page of the comparison."
        : "Select two jobs of the same network to compare them.");
    }
    const shared = (first.layer_names || []).find((name) => (second.layer_names || []).includes(name));
    if (!shared) return setText(compareText, `${first.id} and ${second.id} have no layer in common.`);
    compareLink.hidden = false;
    compareLink.href = `${first.id}/index.html${router.format({ layer: shared, with: [second.id] })}`;
    return setText(compareText, `${first.id} and ${second.id}, at ${shared}`);
  }

  async function refresh() {
    try {
      jobs = await data.jobs("index.js");
    } catch (error) {
      if (!(error instanceof data.Unavailable)) throw error;
      if (!rows.size) main.replaceChildren(el("h1", null, "Jobs"), notice("The list of jobs is not there yet.", ["Try again", "index.html"]));
      main.dataset.ready = "true";
      return;
    }
    for (const job of jobs) {
      if (!rows.has(job.id)) {
        rows.set(job.id, row(job));
        list.append(rows.get(job.id).node);
      }
      rows.get(job.id).update(job);
    }
    updateCompare();
    main.dataset.ready = "true";
    if (jobs.some((job) => job.state === "running")) setTimeout(refresh, REFRESH_MS);
  }

  main.append(el("div", { class: "head" }, el("h1", null, "Jobs"), compareText, compareLink), list);
  refresh();
})();
