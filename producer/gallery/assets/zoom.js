"use strict";
// The whole layer as one picture, from its atlas down to the tiles themselves.
(function () {
  const filterfarm = (window.filterfarm = window.filterfarm || {});
  const { el, setText, notice } = filterfarm.dom;
  const { data, router, pictures } = filterfarm;
  const VIEWER = new URL("openseadragon.min.js", document.currentScript.src).href + new URL(document.currentScript.src).search;
  //: The tiles are loaded once a pixel of the atlas is shown larger than this, in pixels of the screen.
  const TILES_FROM = 1.5;

  function zoomView(context) {
    const { layer, route } = context;
    const stage = el("div", { class: "stage" });
    const where = el("output", { class: "where" }, "\u00a0");
    const button = (label, sign, act) => el("button", { type: "button", "aria-label": label, title: label,
      onclick: () => viewer && act(viewer.viewport) }, sign);
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const node = el("div", { class: "zoom" },
      el("div", { class: "head" }, el("h1", { tabindex: "-1" }, `${layer.name}, zoom`),
        el("p", { class: "actions" },
          button("Zoom in", "+", (view) => view.zoomBy(1.6).applyConstraints(still)),
          button("Zoom out", "−", (view) => view.zoomBy(1 / 1.6).applyConstraints(still)),
          button("Whole layer", "Fit", (view) => view.goHome(still)),
          el("a", { href: router.link(route, { zoom: false }) }, "Close"), where)),
      el("p", { class: "quiet" }, "Drag to move, scroll or pinch to zoom, select a tile to open its unit. Keys: arrows, + and −, Enter for the unit in the middle."),
      stage);
    let viewer = null, tiles = null, closed = false;

    async function open() {
      try { await data.script(VIEWER); } catch (error) { stage.replaceWith(notice(error.message, ["Back to the layer", router.link(route, { zoom: false })])); return; }
      if (!closed) start();
    }

    function start() {
      const OpenSeadragon = window.OpenSeadragon;
      viewer = OpenSeadragon({
        element: stage, drawer: "canvas", // on file:// WebGL refuses images
        crossOriginPolicy: false, showNavigationControl: false, silenceMultiImageWarnings: true,
        animationTime: still ? 0 : 0.5, maxZoomPixelRatio: 16, minZoomImageRatio: 0.7, visibilityRatio: 0.6,
        gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: false },
        gestureSettingsPen: { clickToZoom: false },
        tileSources: { type: "image", url: layer.atlas, buildPyramid: false, crossOriginPolicy: false },
      });
      viewer.canvas.setAttribute("role", "application");
      viewer.canvas.setAttribute("aria-label", `All units of ${layer.name} as one picture`);
      viewer.addHandler("open-failed", () => stage.replaceWith(notice("The layer's atlas cannot be loaded.", ["Back to the layer", router.link(route, { zoom: false })])));
      viewer.addHandler("open", () => { viewer.addTiledImage({ tileSource: tileSource(viewer), x: 0, y: 0, width: 1, opacity: 0, success: ({ item }) => { tiles = item; deepen(); } }); });
      viewer.addHandler("animation", () => { deepen(); tell(viewer.viewport.getCenter(true)); });
      viewer.addHandler("canvas-click", (event) => { if (event.quick) visit(viewer.viewport.pointFromPixel(event.position)); });
      viewer.addHandler("canvas-key", ({ originalEvent }) => { if (originalEvent.key === "Enter") visit(viewer.viewport.getCenter(true)); });
      stage.addEventListener("pointermove", (event) => {
        const box = stage.getBoundingClientRect();
        tell(viewer.viewport.pointFromPixel(new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top)));
      });
    }

    // The tiles as one image of a single level; places without a tile do not exist.
    function tileSource(of) {
      const size = of.world.getItemAt(0).getContentSize();
      const [tileHeight, tileWidth] = layer.job.tile_px || [layer.cellHeight, layer.cellWidth];
      const scale = tileWidth / layer.cellWidth;
      return {
        width: layer.columns * tileWidth, height: Math.round((size.y / layer.cellHeight) * layer.cellHeight * scale),
        tileWidth, tileHeight, tileOverlap: 0, minLevel: 1, maxLevel: 1,
        getTileUrl: (level, x, y) => layer.tile(layer.units[entryAt(x, y)]),
        tileExists: (level, x, y) => level === 1 && entryAt(x, y) !== undefined && layer.status(entryAt(x, y)) !== "failed",
      };
    }

    const entries = new Map(layer.units.map((_, i) => [layer.value("cell", i), i]));
    function entryAt(column, row) {
      return column < 0 || column >= layer.columns || row < 0 ? undefined : entries.get(row * layer.columns + column);
    }

    function entryOf(point) { // of the viewport: the atlas is 1 wide
      const width = 1 / layer.columns;
      return entryAt(Math.floor(point.x / width), Math.floor(point.y / ((width * layer.cellHeight) / layer.cellWidth)));
    }

    function tell(point) {
      const i = entryOf(point);
      setText(where, i === undefined ? "\u00a0" : pictures.label(layer, i));
    }

    function visit(point) {
      const i = entryOf(point);
      if (i !== undefined) router.go(router.link(route, { unit: layer.units[i], zoom: false }));
    }

    function deepen() {
      const base = viewer.world.getItemAt(0);
      if (!tiles || !base) return;
      const shown = base.viewportToImageZoom(viewer.viewport.getZoom(true)) * window.devicePixelRatio;
      tiles.setOpacity(shown > TILES_FROM ? 1 : 0);
    }

    function close() {
      closed = true;
      if (viewer) viewer.destroy();
    }

    return { node, open, close, update() {}, title: [`${layer.name}, zoom`, context.job.id] };
  }

  filterfarm.zoom = zoomView;
})();
