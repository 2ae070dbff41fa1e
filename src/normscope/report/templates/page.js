(() => {
  "use strict";
  const root = document.documentElement;
  const { charts, themes } = JSON.parse(document.getElementById("page-data").textContent);
  const boxes = [...document.querySelectorAll(".chart")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;

  const mode = () => (printing ? "light" : root.dataset.theme || (dark.matches ? "dark" : "light"));

  // ---- the width of a chart; plots/_figure.py does the same for saved figures
  function wrapped(text, letters) {
    const lines = [""];
    for (const word of text.split(/\s+/)) {
      const line = lines[lines.length - 1];
      if (line && line.length + word.length + 1 > letters) lines.push(word);
      else lines[lines.length - 1] = line ? `${line} ${word}` : word;
    }
    return lines;
  }

  function fitted(source, width, correction) {
    const spec = structuredClone(source);
    const meta = (spec.usermeta || {}).normscope || {};
    if (meta.subtitle) spec.title = { text: wrapped(meta.subtitle, Math.max(20, Math.floor(width / 6.8))) };
    const sizes = (meta.legend || []).map((label) => label.length * 6.6 + 44);
    const line = sizes.reduce((sum, size) => sum + size, 0);
    const columns = line <= width - 60 ? sizes.length : Math.floor((width - 60) / Math.max(...sizes));
    const small = width < 480 ? 11.5 : 12.5;
    spec.config = {
      legend: { columns: Math.max(1, columns), labelLimit: Math.max(120, width - 60) },
      style: {
        "row-label": { limit: Math.max(90, width - 34 - (meta.words || 0)), fontSize: small },
        "row-effect": { fontSize: small },
      },
    };
    let across = 1;
    if (meta.layout === "facet") {
      across = Math.max(1, Math.min(meta.panels, Math.floor(width / (meta.least || (meta.panels === 3 ? 200 : 250))), 3));
      across = Math.ceil(meta.panels / Math.ceil(meta.panels / across)); // 2 + 2, not 3 + 1
      spec.columns = across;
      spec.spec.width = Math.max(90, (width - 30) / across - 55 + correction);
    } else if (meta.layout === "stack") {
      for (const part of spec.vconcat) part.width = Math.max(120, width - 30 + correction);
    } else {
      spec.width = width;
      spec.autosize = { type: "fit-x", contains: "padding" };
    }
    return { spec, across, rigid: meta.layout === "facet" || meta.layout === "stack" };
  }

  // ---- the numbers under the pointer; text only, whatever the strings are
  const note = document.createElement("div");
  note.id = "tip";
  note.hidden = true;
  document.body.append(note);

  function tip(handler, event, item, value) {
    note.hidden = value === null || value === undefined || value === "";
    if (note.hidden) return;
    const pairs = typeof value === "object" ? Object.entries(value) : [["", value]];
    const list = document.createElement("dl");
    for (const [key, text] of pairs) {
      // Under "nearest" Vega-Lite 6.4 looks for names one level too high: the row itself is datum.datum.
      const row = item && item.datum && item.datum.datum;
      const shown = text === "undefined" && row && key in row ? row[key] : text;
      list.append(
        Object.assign(document.createElement("dt"), { textContent: key }),
        Object.assign(document.createElement("dd"), { textContent: shown }),
      );
    }
    note.replaceChildren(list);
    const place = note.getBoundingClientRect();
    const left = event.clientX + 14 + place.width > innerWidth ? event.clientX - place.width - 14 : event.clientX + 14;
    const top = event.clientY + 14 + place.height > innerHeight ? event.clientY - place.height - 14 : event.clientY + 14;
    note.style.left = `${Math.max(4, left)}px`;
    note.style.top = `${Math.max(4, top)}px`;
  }
  addEventListener("scroll", () => { note.hidden = true; }, { passive: true });
  addEventListener("keydown", (event) => { if (event.key === "Escape") note.hidden = true; });

  // ---- drawing: one chart at a time, again where width or theme has changed meanwhile
  const drawn = new Map();

  async function embed(box, width, shown) {
    const chart = charts[box.dataset.chart];
    const options = {
      renderer: "svg",
      ast: true, // expressions are interpreted: the page's policy forbids making code from strings
      config: themes[shown],
      tooltip: tip,
      defaultStyle: false,
      forceActionsMenu: true,
      actions: { export: { png: true, svg: true }, source: false, compiled: false, editor: false },
      i18n: { CLICK_TO_VIEW_ACTIONS: "Save this chart", PNG_ACTION: "Save as PNG", SVG_ACTION: "Save as SVG" },
      downloadFileName: `normscope-${chart.name}`,
      scaleFactor: { png: 2, svg: 1 },
    };
    let correction = 0;
    for (let pass = 0; ; pass += 1) {
      const fit = fitted(chart.spec, width, correction);
      fit.spec.description = chart.alt;
      const last = drawn.get(box);
      if (last && last.result) last.result.finalize();
      const result = await vegaEmbed(box, fit.spec, options);
      drawn.set(box, { width, mode: shown, result });
      const svg = box.querySelector("svg.marks");
      const excess = svg ? Number(svg.getAttribute("width")) - width : 0;
      if (!fit.rigid || pass > 2 || (excess <= 0 && excess > -14)) break;
      correction -= Math.ceil((excess + 4) / fit.across); // axis labels are as wide as they are: known only once drawn
    }
    const summary = box.querySelector("summary");
    if (summary) {
      summary.textContent = "Save";
      summary.setAttribute("aria-label", "Save this chart as PNG or SVG");
    }
  }

  async function draw(box) {
    if (box.dataset.busy || folded(box)) return;
    box.dataset.busy = "1";
    try {
      for (;;) {
        const width = Math.floor(box.clientWidth);
        const shown = mode();
        const last = drawn.get(box);
        if (!width || (last && last.width === width && last.mode === shown)) break;
        if (!last) box.replaceChildren();
        await embed(box, width, shown);
      }
    } catch (error) {
      drawn.set(box, { width: Math.floor(box.clientWidth), mode: mode(), result: null });
      box.textContent = `This chart could not be drawn (${error.message}). It shows: ${charts[box.dataset.chart].alt}`;
    } finally {
      delete box.dataset.busy;
    }
    report();
  }

  // What is folded away has no width to draw in; it is drawn when its fold is opened.
  const folded = (box) => Boolean(box.closest("details:not([open])"));
  const current = (box) => {
    const last = drawn.get(box);
    return folded(box) || (last && last.mode === mode() && !box.dataset.busy);
  };

  function report() {
    root.dataset.charts = boxes.every(current) ? "ready" : "drawing";
  }

  // Near ones first, the rest when the browser is idle: they must be there for printing and for a search.
  const idle = window.requestIdleCallback || ((call) => setTimeout(call, 30));
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        if (folded(entry.target)) continue;
        watcher.unobserve(entry.target);
        draw(entry.target);
      }
    },
    { rootMargin: "700px" },
  );

  function fill() {
    const next = boxes.find((box) => !current(box) && !box.dataset.busy);
    report();
    if (next) idle(() => draw(next).then(fill), { timeout: 500 });
  }

  function again() {
    root.dataset.charts = "drawing";
    const near = boxes.filter((box) => {
      const place = box.getBoundingClientRect();
      return place.bottom > -300 && place.top < innerHeight + 300;
    });
    Promise.all(near.map(draw)).then(fill);
  }

  document.addEventListener("toggle", (event) => { if (event.target.open) fill(); }, true);

  // ---- a link to a study opens it
  function reveal() {
    const target = document.getElementById(location.hash.slice(1));
    const whole = target && target.querySelector(":scope > details.whole");
    if (!whole) return;
    whole.open = true;
    target.scrollIntoView();
  }
  addEventListener("hashchange", reveal);
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[href^='#']");
    if (link && link.hash === location.hash) reveal(); // the address does not change, so nothing else would tell
  });
  reveal();

  report();
  boxes.forEach((box) => watcher.observe(box));
  if (document.readyState === "complete") fill();
  else addEventListener("load", fill);

  let pending = 0;
  let lastWidth = document.body.clientWidth;
  new ResizeObserver(() => {
    if (document.body.clientWidth === lastWidth || printing) return;
    lastWidth = document.body.clientWidth;
    clearTimeout(pending);
    pending = setTimeout(() => {
      for (const box of boxes) {
        const last = drawn.get(box);
        if (last && last.width !== Math.floor(box.clientWidth)) last.mode = "";
      }
      again();
    }, 150);
  }).observe(document.body);

  // ---- light and dark
  const button = document.getElementById("theme");
  function label() {
    const next = mode() === "dark" ? "light" : "dark";
    button.querySelector(".word").textContent = next === "dark" ? "Dark" : "Light";
    button.querySelector(".icon").textContent = next === "dark" ? "☾" : "☀";
    button.setAttribute("aria-label", `Switch to ${next} colours`);
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = mode() === "dark" ? "light" : "dark";
    root.dataset.theme = next;
    try { localStorage.setItem("normscope-theme", next); } catch { /* then it lasts as long as the page */ }
    label();
    again();
  });
  dark.addEventListener("change", () => { label(); again(); });
  label();

  // ---- paper: light charts, nothing folded
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details.fold:not([open]), details.whole:not([open])")];
    for (const fold of closed) fold.open = true;
    printing = true;
    boxes.forEach(draw);
  });
  addEventListener("afterprint", () => {
    for (const fold of closed) fold.open = false;
    printing = false;
    again();
  });

  // ---- commands
  const said = document.getElementById("said");
  for (const copy of document.querySelectorAll(".copy")) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      const code = copy.parentElement.querySelector("code");
      let done = true;
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        const range = document.createRange();
        range.selectNodeContents(code);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        done = document.execCommand("copy");
      }
      copy.textContent = done ? "Copied" : "Press Ctrl+C";
      said.textContent = done ? "The command was copied" : "The command is selected";
      setTimeout(() => { copy.textContent = "Copy"; said.textContent = ""; }, 2000);
    });
  }

  // ---- the filters; without a script every row shows
  for (const form of document.querySelectorAll(".filters")) {
    form.hidden = false;
    const rows = [...form.parentElement.querySelectorAll(".tile")];
    const picks = [...form.querySelectorAll("select")];
    const apply = () => {
      let shown = 0;
      for (const row of rows) {
        const fits = picks.every((pick) => !pick.value || (row.dataset[pick.dataset.key] || "").split("\n").includes(pick.value));
        row.hidden = !fits;
        shown += fits;
      }
      form.querySelector("output").textContent = `${shown} of ${rows.length} claims`;
    };
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", apply);
    apply();
  }

  // ---- where one is, in the contents
  const links = new Map([...document.querySelectorAll("nav.contents a")].map((a) => [a.hash.slice(1), a]));
  const spy = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const a of links.values()) a.removeAttribute("aria-current");
        const here = links.get(entry.target.id);
        if (here) here.setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-10% 0px -80% 0px" },
  );
  document.querySelectorAll("main > section").forEach((section) => spy.observe(section));

  // A region that does not scroll needs no stop on the way of the Tab key, and no words that say that it scrolls.
  const regions = [...document.querySelectorAll(".scroll")];
  const stops = () => regions.forEach((region) => {
    const scrolls = region.scrollWidth > region.clientWidth + 1;
    region.tabIndex = scrolls ? 0 : -1;
    const words = region.previousElementSibling;
    if (words && words.classList.contains("more")) words.hidden = !scrolls;
  });
  stops();
  addEventListener("resize", stops);
  document.addEventListener("toggle", stops, true);

  // ---- the contents of a narrow page close behind a choice, and when one points elsewhere
  const menu = document.querySelector(".menu");
  document.addEventListener("click", (event) => {
    if (menu.open && (!menu.contains(event.target) || event.target.closest("a"))) menu.open = false;
  });
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
})();
