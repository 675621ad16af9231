"use strict";
// Elements, texts and announcements. Data reaches the page as text and attributes only, never as markup.
(function () {
  const filterfarm = (window.filterfarm = window.filterfarm || {});

  // el("a", {href, class, "aria-label"}, "text", node): null and false among attributes and children are left out.
  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return node;
  }

  // Replaces a node's text only if it differs, so that a live region announces changes alone.
  function setText(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  function announce(text) {
    setText(document.getElementById("live"), text);
  }

  function plural(count, noun) {
    return `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;
  }

  function whole(count) {
    return Number(count).toLocaleString("en");
  }

  // Four significant digits.
  function decimal(value) {
    if (typeof value !== "number" || !Number.isFinite(value)) return "not recorded";
    const magnitude = Math.abs(value);
    if (magnitude !== 0 && (magnitude < 1e-3 || magnitude >= 1e6)) return value.toExponential(3);
    return String(Number(value.toPrecision(4)));
  }

  function percent(part, total) {
    return total ? Math.floor((100 * part) / total) : 100;
  }

  // "12 of 64 done, 3 rescued, 1 dead": what is zero is not said, and "done" is not counted out once all are.
  function counts(done, total, more) {
    const parts = [done === total ? plural(total, "unit") : `${whole(done)} of ${plural(total, "unit")}`];
    for (const status of ["rescued", "dead", "failed"]) {
      if (more[status]) parts.push(`${whole(more[status])} ${status}`);
    }
    return parts.join(", ");
  }

  // A line that says what is wrong, with links as the way out: notice("No layer x.", ["All layers", "#/"]).
  function notice(text, ...links) {
    const line = el("p", { class: "notice" }, text);
    for (const [label, href] of links) line.append(" ", el("a", { href }, label));
    return line;
  }

  function progress(label, part, total) {
    return el("progress", { "aria-label": label, max: total || 1, value: part });
  }

  function isTyping(target) {
    return target instanceof Element && target.matches("input, select, textarea, summary, .zoom *");
  }

  filterfarm.dom = { el, setText, announce, plural, whole, decimal, percent, counts, notice, progress, isTyping };
})();
