"use strict";
// Pictures of units: cells of a layer's atlas as CSS sprites, and the tiles themselves.
(function () {
  const filterfarm = (window.filterfarm = window.filterfarm || {});
  const { el } = filterfarm.dom;
  const SCALES = { small: 0.625, normal: 1, large: 2.5 };

  // Custom properties on a container, from which all its sprites of the `place`-th compared layer inherit. The address
  // is absolute: a relative one would be resolved against the style sheet.
  function setAtlas(container, layer, place) {
    const address = new URL(layer.atlas, document.baseURI).href.replace(/["\\()]/g, encodeURIComponent);
    container.style.setProperty(`--atlas${place}`, `url("${address}")`);
    container.style.setProperty(`--columns${place}`, layer.columns);
  }

  // Width and height in px of a sprite in the container.
  function setSize(container, layer, size) {
    container.style.setProperty("--w", `${Math.round(layer.cellWidth * SCALES[size])}px`);
    container.style.setProperty("--h", `${Math.round(layer.cellHeight * SCALES[size])}px`);
  }

  // A new atlas is shown once it is loaded, so that no cell goes blank.
  function swapAtlas(container, layer, place) {
    const image = new Image();
    image.onload = () => setAtlas(container, layer, place);
    image.src = layer.atlas;
  }

  // The sprite of entry i; empty if the unit has no picture.
  function sprite(layer, i, place) {
    const node = el("span", { class: `pic p${place}` });
    setSprite(node, layer, i, place);
    return node;
  }

  function setSprite(node, layer, i, place) {
    const status = i === undefined ? "absent" : layer.status(i);
    node.className = `pic p${place} ${status}`;
    if (i === undefined || status === "failed") return;
    const cell = layer.value("cell", i);
    const column = cell % layer.columns, row = Math.floor(cell / layer.columns);
    node.style.backgroundPosition = `calc(var(--w) * ${-column}) calc(var(--h) * ${-row})`;
  }

  // The tile as an image, with the sprite's space reserved.
  function tile(layer, i) {
    const unit = layer.units[i], [height, width] = layer.job.tile_px || [1, 1];
    return el("img", { src: layer.tile(unit), width, height, alt: `Unit ${unit} of ${layer.name}`, class: "tile" });
  }

  function label(layer, i) {
    const unit = layer.units[i], name = layer.unitName(unit), status = layer.status(i);
    return `unit ${unit}${name ? `, ${name}` : ""}${status === "live" ? "" : `, ${status}`}`;
  }

  filterfarm.pictures = { setAtlas, setSize, swapAtlas, sprite, setSprite, tile, label };
})();
