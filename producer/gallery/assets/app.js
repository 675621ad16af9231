"use strict";
// The page of a job: follows the link, shows the view, and keeps it current while the job runs.
(function () {
  const { dom, data, router, compare, network, layer: layerView, unit: unitView, zoom: zoomView } = window.filterfarm;
  const { el, notice, announce } = dom;
  const REFRESH_MS = 5000;
  const main = document.getElementById("main");
  const layers = new Map(); // layer name -> Layer as last loaded
  let job = null, view = null, viewKey = null, turn = 0, cameFrom = null;

  async function loadLayer(info) {
    const known = layers.get(info.name);
    if (known && known.stamp === info.stamp) return known;
    const loaded = await data.layer(job, info);
    loaded.stamp = info.stamp; // what was asked for, else a file that lags behind is loaded again and again
    layers.set(info.name, loaded);
    return loaded;
  }

  // What the route's view needs. Raises Unavailable, or Lost where the link leads nowhere.
  class Lost extends Error {}
  async function gather(route) {
    if (route.layer === null) return { job, route };
    const info = job.find(route.layer);
    if (!info) throw new Lost(`This job has no layer "${route.layer}".`);
    const [layer, others] = await Promise.all([loadLayer(info), compare.others(route, info)]);
    if (route.unit !== null && !layer.position.has(route.unit)) {
      const reason = layer.data.complete ? "is not part of this job" : "has no picture yet, or is not part of this job";
      throw new Lost(`Unit ${route.unit} of ${layer.name} ${reason}.`);
    }
    return { job, route, info, layer, others };
  }

  function kindOf(route) {
    if (route.layer === null) return "network";
    if (route.unit !== null) return "unit";
    return route.zoom ? "zoom" : "layer";
  }

  async function show({ refreshing = false } = {}) {
    router.redirectOld();
    const route = router.current(), mine = ++turn;
    const kind = kindOf(route);
    const key = JSON.stringify([kind, route.layer, route.unit, route.embed, kind === "unit" && [route.by, route.show]]);
    if (!refreshing) delete main.dataset.ready;
    let context;
    try {
      context = await gather(route);
    } catch (error) {
      if (mine !== turn || refreshing) return ready(); // what is shown stays until there is something better
      if (!(error instanceof Lost || error instanceof data.Unavailable)) throw error;
      return showNotice(error, route);
    }
    if (mine !== turn) return undefined;
    document.documentElement.classList.toggle("embed", route.embed);
    if (view && viewKey === key) view.update(context);
    else place(kind, key, context);
    return ready();
  }

  function place(kind, key, context) {
    const first = viewKey === null, { route } = context;
    if (view && view.close) view.close();
    view = { network, layer: layerView, unit: unitView, zoom: zoomView }[kind](context);
    viewKey = key;
    path(context);
    document.body.dataset.view = kind;
    document.title = [...view.title.slice(0, -1), view.title[view.title.length - 1]].join(" · ");
    main.replaceChildren(view.node, fullLink(route));
    if (view.open) view.open();
    const back = kind === "layer" && cameFrom && cameFrom.layer === context.info.name;
    const behind = kind === "network" && cameFrom && cameFrom.layer;
    if (back && view.reveal(cameFrom.unit)) { /* the unit is in sight and focused */ }
    else if (behind) revealLayer(cameFrom.layer);
    else {
      scrollTo(0, 0);
      if (!first) main.querySelector("h1").focus({ preventScroll: true });
    }
    cameFrom = context.info ? { layer: context.info.name, unit: route.unit } : null;
  }

  function revealLayer(name) {
    const link = [...main.querySelectorAll(".layers h2 a")].find((one) => one.textContent === name);
    if (!link) return;
    link.scrollIntoView({ block: "center" });
    link.focus({ preventScroll: true });
  }

  function showNotice(error, route) {
    if (view && view.close) view.close();
    view = null;
    viewKey = "";
    const ways = [["All layers", router.format({ embed: route.embed })]];
    if (route.unit !== null && job.find(route.layer)) ways.unshift(["The layer", router.link(route, { unit: null })]);
    document.body.dataset.view = kindOf(route);
    document.documentElement.classList.toggle("embed", route.embed);
    document.title = job.id;
    path({ job, route: { layer: null, unit: null } });
    main.replaceChildren(el("h1", { tabindex: "-1" }, "Nothing to show"), notice(error.message, ...ways));
    announce(error.message);
    return ready();
  }

  function ready() {
    main.dataset.ready = "true";
  }

  // Where the view is: jobs / job / layer / unit.
  function path({ route, info }) {
    const steps = [[job.id, router.format({})]];
    if (info) steps.push([info.name, router.link(route, { unit: null, zoom: false })]);
    if (route.unit !== null) steps.push([String(route.unit), router.link(route, {})]);
    else if (route.zoom) steps.push(["zoom", router.link(route, {})]);
    const items = steps.map(([text, href], k) => el("li", null,
      el("a", { href, "aria-current": k === steps.length - 1 ? "page" : null }, text)));
    document.getElementById("path").replaceChildren(...items);
    data.jobsBeside().then((jobs) => {
      const home = document.getElementById("path");
      if (jobs.length && home.firstChild === items[0]) home.prepend(el("li", null, el("a", { href: "../index.html" }, "All jobs")));
    });
  }

  // Within a frame: the way to the same view with everything around it.
  function fullLink(route) {
    if (!route.embed) return "";
    const href = location.href.split("#")[0] + router.link(route, { embed: false });
    return el("p", { class: "full" }, el("a", { href, target: "_blank", rel: "noopener" }, "Open in the gallery"));
  }

  async function refresh() {
    if (job.state !== "running") return;
    try {
      job = await data.job(data.ownJob());
      compare.forgetUnfinished();
      await show({ refreshing: true });
    } catch (error) {
      if (!(error instanceof data.Unavailable)) throw error; // the next attempt may find it
    } finally {
      setTimeout(refresh, REFRESH_MS);
    }
  }

  function keys(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const route = router.current();
    if (event.key === "Escape") {
      const menu = document.querySelector("details.menu[open]");
      if (menu) { menu.open = false; menu.firstElementChild.focus(); }
      else if (event.target.closest("input, select, textarea")) { /* its own key */ }
      else if (route.zoom) router.go(router.link(route, { zoom: false }));
      else if (route.unit !== null) router.go(router.link(route, { unit: null }));
      else if (route.layer !== null) router.go(router.format({ embed: route.embed }));
      return;
    }
    if (dom.isTyping(event.target)) return;
    const href = view && { ArrowLeft: view.before, ArrowRight: view.after }[event.key];
    if (href) { event.preventDefault(); router.go(href); }
  }

  async function start() {
    try {
      job = await data.job(data.ownJob());
    } catch (error) {
      if (!(error instanceof data.Unavailable)) throw error;
      document.body.dataset.view = "network";
      main.replaceChildren(el("h1", null, data.ownJob() || "filterfarm"), el("p", { class: "notice" },
        "This job's data is not there yet. ", el("button", { type: "button", onclick: () => location.reload() }, "Try again"),
        " ", el("a", { href: "../index.html" }, "All jobs")));
      return ready();
    }
    addEventListener("hashchange", () => show());
    addEventListener("keydown", keys);
    await show();
    setTimeout(refresh, REFRESH_MS);
    return undefined;
  }

  start();
})();
