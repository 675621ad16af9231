"use strict";
// Which units of a layer are shown, in which order, and which are alike.
(function () {
  const filterfarm = (window.filterfarm = window.filterfarm || {});

  // Entries (not unit numbers) of the layer in the route's order and filter.
  function arranged(layer, route) {
    let entries = layer.units.map((_, i) => i);
    if (route.show) {
      entries = entries.filter((i) => layer.status(i) === "other" || route.show.includes(layer.status(i)));
    }
    const key = keyOf(layer, route.by);
    if (!key) return entries.sort((a, b) => layer.units[a] - layer.units[b]);
    const keys = new Map(entries.map((i) => [i, key(i)]));
    return entries.sort((a, b) => descending(keys.get(a), keys.get(b)) || layer.units[a] - layer.units[b]);
  }

  // Highest first; units without a value last.
  function descending(a, b) {
    const known = (value) => typeof value === "number" && Number.isFinite(value);
    if (!known(a) || !known(b)) return Number(known(b)) - Number(known(a));
    return b - a;
  }

  function keyOf(layer, by) {
    if (by === "activation") return (i) => layer.value("activation", i);
    if (by === "gain") return (i) => layer.gain(i);
    if (by.startsWith("similar:")) {
      const similarity = cosines(layer, layer.position.get(Number(by.slice("similar:".length))));
      return similarity && ((i) => similarity[i]);
    }
    return null;
  }

  // Cosine of entry i's descriptor and each entry's, NaN for those without a picture; null if i has none.
  function cosines(layer, i) {
    const descriptors = layer.descriptors;
    if (i === undefined || !descriptors) return null;
    const { size, values } = descriptors;
    const norm = (k) => Math.sqrt(dot(values, size, k, k));
    const own = norm(i);
    if (!own) return null;
    return Float64Array.from(layer.units, (_, k) => dot(values, size, i, k) / (own * norm(k)));
  }

  function dot(values, size, a, b) {
    let sum = 0;
    for (let k = 0; k < size; k++) sum += values[a * size + k] * values[b * size + k];
    return sum;
  }

  // The entries most alike to entry i, highest first: [{entry, cosine}].
  function mostAlike(layer, i, count) {
    const similarity = cosines(layer, i);
    if (!similarity) return [];
    return layer.units
      .map((_, entry) => ({ entry, cosine: similarity[entry] }))
      .filter(({ entry, cosine }) => entry !== i && Number.isFinite(cosine))
      .sort((a, b) => b.cosine - a.cosine)
      .slice(0, count);
  }

  // The unit that a person asked for by number or by a part of its name, null if there is none.
  function findUnit(layer, text) {
    const wanted = text.trim().toLowerCase();
    if (/^\d{1,9}$/.test(wanted)) return layer.position.has(Number(wanted)) ? Number(wanted) : null;
    if (!wanted) return null;
    const names = layer.units.map((unit) => [unit, layer.unitName(unit).toLowerCase()]);
    const found = names.find(([, name]) => name === wanted) || names.find(([, name]) => name.includes(wanted));
    return found ? found[0] : null;
  }

  filterfarm.order = { arranged, mostAlike, findUnit };
})();
