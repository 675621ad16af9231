"use strict";
// Loads what the collector wrote. A data file is a script of one call, filterfarm.receive(kind, name, data): scripts load
// from http:// and file:// alike, which fetch() does not.
(function () {
  const filterfarm = (window.filterfarm = window.filterfarm || {});
  const NAME = /^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$/;
  const STATUS = { l: "live", r: "rescued", d: "dead", f: "failed" };
  const received = new WeakMap(); // script element -> {kind, data}

  filterfarm.receive = function (kind, name, data) {
    if (document.currentScript) received.set(document.currentScript, { kind, data });
  };

  // Raised when data is absent, cannot be read, or is not what it should be.
  class Unavailable extends Error {}

  function isName(text) {
    return typeof text === "string" && NAME.test(text);
  }

  // Loads a script. Resolves to what it passed to filterfarm.receive, null if it passed nothing.
  function script(src) {
    return new Promise((resolve, reject) => {
      const node = document.createElement("script");
      node.src = src;
      node.onload = () => { node.remove(); resolve(received.get(node) || null); };
      node.onerror = () => { node.remove(); reject(new Unavailable(`${src.split("?")[0]} cannot be read.`)); };
      document.head.append(node);
    });
  }

  async function load(src, kind) {
    const found = await script(src);
    if (!found || found.kind !== kind || !found.data || typeof found.data !== "object") {
      throw new Unavailable(`${src.split("?")[0]} is not data of this gallery.`);
    }
    return found.data;
  }

  // The folder of a job as seen from the page of another; "" for the page's own.
  function base(id) {
    return id === ownJob() ? "" : `../${id}/`;
  }

  function ownJob() {
    return document.documentElement.dataset.job || "";
  }

  async function job(id) {
    if (!isName(id)) throw new Unavailable(`"${id}" is not the id of a job.`);
    const data = await load(`${base(id)}gallery.js?t=${Date.now()}`, "job");
    if (data.format !== "filterfarm gallery") throw new Unavailable(`${base(id)}gallery.js is not of this gallery.`);
    const layers = (Array.isArray(data.layers) ? data.layers : []).filter((layer) => layer && isName(layer.name));
    for (const layer of layers) layer.aliases = (layer.aliases || []).filter((alias) => typeof alias === "string");
    const names = new Map();
    for (const layer of layers) for (const alias of layer.aliases) names.set(alias, layer);
    for (const layer of layers) names.set(layer.name, layer);
    return { ...data, id: data.job, base: base(id), layers, find: (name) => names.get(name) || null };
  }

  // The records of a layer. `info` is its entry in the job.
  async function layer(ofJob, info) {
    if (!info.stamp) throw new Unavailable(`${info.name} has no tiles yet.`);
    const data = await load(`${ofJob.base}layers/${info.name}.js?t=${info.stamp}`, "layer");
    const units = Array.isArray(data.filter) ? data.filter : [];
    if (!units.every(Number.isSafeInteger) || typeof data.status !== "string") {
      throw new Unavailable(`${ofJob.base}layers/${info.name}.js is not of this gallery.`);
    }
    return new Layer(ofJob, info.name, units, data);
  }

  async function jobs(src) {
    const data = await load(`${src}?t=${Date.now()}`, "jobs");
    if (data.format !== "filterfarm jobs") throw new Unavailable(`${src} does not list jobs of filterfarm.`);
    return (Array.isArray(data.jobs) ? data.jobs : []).filter((entry) => entry && isName(entry.id));
  }

  // The jobs beside this one, [] if there is no list. Asked for only where the folder has the job's name: a folder that
  // was fetched under another name may stand beside anything.
  let beside = null;
  function jobsBeside() {
    const folder = decodeURIComponent(location.pathname.split("/").slice(-2)[0] || "");
    if (folder !== ownJob()) return Promise.resolve([]);
    beside = beside || jobs("../index.js").catch(() => []);
    return beside;
  }

  // Columns of one layer; entry i is one unit.
  class Layer {
    constructor(ofJob, name, units, data) {
      this.job = ofJob;
      this.data = data;
      this.name = name;
      this.stamp = data.stamp;
      this.units = units;
      this.columns = Math.max(1, Number(data.columns) || 1);
      [this.cellHeight, this.cellWidth] = (data.cell_px || [64, 64]).map(Number);
      this.position = new Map(this.units.map((unit, i) => [unit, i]));
      this.atlas = `${ofJob.base}atlas/${name}.webp?v=${data.stamp}`;
    }

    // A column may hold one value for all units.
    value(column, i) {
      const values = this.data[column];
      return Array.isArray(values) ? values[i] : values;
    }

    status(i) {
      return STATUS[this.data.status[i]] || "other";
    }

    gain(i) {
      const before = this.value("start", i), after = this.value("activation", i);
      return typeof before === "number" && typeof after === "number" ? after - before : null;
    }

    unitName(unit) {
      const name = this.data.names && this.data.names[unit];
      return typeof name === "string" ? name : "";
    }

    tile(unit) {
      return `${this.job.base}tiles/${this.name}/${unit}.png`;
    }

    // (units, size) int8, or null if the layer has none.
    get descriptors() {
      if (this.decoded === undefined) this.decoded = decode(this.data.descriptors, this.units.length);
      return this.decoded;
    }
  }

  function decode(descriptors, rows) {
    if (!descriptors || !descriptors.data || !(descriptors.size > 0)) return null;
    let text;
    try { text = atob(descriptors.data); } catch { return null; }
    if (text.length !== rows * descriptors.size) return null;
    return { size: descriptors.size, values: Int8Array.from(text, (character) => character.charCodeAt(0)) };
  }

  filterfarm.data = { Unavailable, isName, script, job, layer, jobs, jobsBeside, ownJob };
})();
