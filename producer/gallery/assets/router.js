"use strict";
// Links: #/<layer>/<unit>?by=&show=&with=&size=&view=zoom&embed. Layers may be named by their alias.
(function () {
  const filterfarm = (window.filterfarm = window.filterfarm || {});
  const ORDERS = /^(index|activation|gain|similar:\d{1,9})$/;
  const SIZES = ["small", "large"];
  const SHOWN = ["live", "rescued", "dead", "failed"];
  const MOST_COMPARED = 3;

  function decoded(text) {
    try { return decodeURIComponent(text); } catch { return text; }
  }

  // Fields: layer (null: network), unit (null: the layer; a text that is no number stays a text), by, show (null: all),
  // with (ids of jobs), size, zoom, embed.
  function parse(hash) {
    const text = hash.replace(/^#\/?/, "");
    const mark = /[?&]/.exec(text); // "#/&embed" is accepted as well
    const path = (mark ? text.slice(0, mark.index) : text).split("/").map(decoded);
    const query = new URLSearchParams(mark ? text.slice(mark.index + 1) : "");
    const by = query.get("by") || "index", show = query.get("show");
    return {
      layer: path[0] || null,
      unit: path.length > 1 && path[1] !== "" ? (/^\d{1,9}$/.test(path[1]) ? Number(path[1]) : path[1]) : null,
      by: ORDERS.test(by) ? by : "index",
      show: show === null ? null : SHOWN.filter((status) => show.split(",").includes(status)),
      with: [...new Set((query.get("with") || "").split(",").filter(Boolean))].slice(0, MOST_COMPARED),
      size: SIZES.includes(query.get("size")) ? query.get("size") : "normal",
      zoom: query.get("view") === "zoom",
      embed: query.has("embed"),
    };
  }

  function format(route) {
    const path = [route.layer, route.unit].filter((part) => part !== null && part !== undefined);
    const query = [];
    if (route.by && route.by !== "index") query.push(`by=${route.by}`);
    if (route.show) query.push(`show=${route.show.join(",") || "none"}`);
    if (route.with && route.with.length) query.push(`with=${route.with.map(encodeURIComponent).join(",")}`);
    if (route.size && route.size !== "normal") query.push(`size=${route.size}`);
    if (route.zoom) query.push("view=zoom");
    if (route.embed) query.push("embed");
    return `#/${path.map((part) => encodeURIComponent(part)).join("/")}${query.length ? `?${query.join("&")}` : ""}`;
  }

  function current() {
    return parse(location.hash);
  }

  // The link to the same view with some fields changed.
  function link(route, changes) {
    return format({ ...route, ...changes });
  }

  // A new place, which the back button returns from.
  function go(hash) {
    location.hash = hash;
  }

  // The same place seen otherwise: sorted, filtered, sized. The back button skips it.
  function adjust(hash) {
    history.replaceState(null, "", hash);
    dispatchEvent(new HashChangeEvent("hashchange"));
  }

  // Links of 0.1.0, #features.24/17, become #/features.24/17.
  function redirectOld() {
    if (location.hash.length > 1 && !location.hash.startsWith("#/")) {
      history.replaceState(null, "", format(current()));
    }
  }

  filterfarm.router = { SHOWN, MOST_COMPARED, parse, format, current, link, go, adjust, redirectOld };
})();
