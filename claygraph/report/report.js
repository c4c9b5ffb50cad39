"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  data.cells.forEach((cell, at) => { cell.at = at; });
  const $ = (id) => document.getElementById(id);
  const axes = Object.keys(data.axes);
  const metrics = Object.keys(data.metrics);
  const ALL = "all";
  const state = { roles: { ...data.roles }, layout: data.grid ? "grid" : "list", sort: "index", metric: metrics[0] || "", page: 0 };

  /* An element with properties, its children after them; text is always set as text. */
  function make(tag, properties, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties || {})) {
      if (name in element && name !== "list") element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  const plain = (text) => String(text).replace(/^(['"])(.*)\1$/, "$2").replace(/\\([\\'":])/g, "$1");
  const cut = (text) => (text.length > 40 ? "…" + text.slice(-39) : text);
  const last = (text) => text.split("/").pop();

  /* What stands for a value of an axis: of paths the file names, where these tell them apart. */
  const labels = new Map(axes.map((axis) => {
    const texts = data.axes[axis].map(plain);
    const paths = texts.some((text) => text.includes("/")) && new Set(texts.map(last)).size === texts.length;
    return [axis, new Map(data.axes[axis].map((value, at) => [value, cut(paths ? last(texts[at]) : texts[at])]))];
  }));
  const shown = (axis, value) => labels.get(axis).get(value) ?? cut(plain(value));
  const number = (value) => (value === undefined ? "–" : Number(value.toPrecision(4)).toString());
  const by = (role) => axes.filter((axis) => state.roles[axis] === role);
  const told = (cell) => axes.filter((axis) => data.usual[axis] !== cell.axes[axis]);
  const settings = (cell) => told(cell).map((axis) => `${data.short[axis]}=${shown(axis, cell.axes[axis])}`).join("  ");
  const name = (cell) => `#${cell.index}  ${axes.length ? settings(cell) || "baseline" : plain(cell.image)}`;

  /* What of a cell's axes have these values: a key that sorts as the axes' values are ordered. */
  const place = (cell, keys) => keys.map((axis) => data.axes[axis].indexOf(cell.axes[axis]));
  const compare = (one, other) => one.map((value, at) => value - other[at]).find((difference) => difference) || 0;
  function groups(cells, keys) {
    const found = new Map();
    for (const cell of cells) {
      const at = place(cell, keys);
      const key = at.join();
      if (!found.has(key)) found.set(key, { at, cells: [], values: keys.map((axis) => [axis, cell.axes[axis]]) });
      found.get(key).cells.push(cell);
    }
    return [...found.values()].sort((one, other) => compare(one.at, other.at));
  }

  const ranges = {};
  for (const metric of metrics) {
    const values = data.cells.map((cell) => cell.metrics[metric]).filter((value) => value !== undefined);
    ranges[metric] = [Math.min(...values), Math.max(...values)];
  }

  /* Pictures are decoded when they come near the window. */
  const nearby = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      entry.target.src = data.cells[entry.target.dataset.at].thumb;
      nearby.unobserve(entry.target);
    }
  }, { rootMargin: "700px" });

  function frame(cell) {
    if (cell.thumb) {
      const image = make("img", { alt: "", decoding: "async" });
      image.dataset.at = cell.at;
      nearby.observe(image);
      return make("span", { className: "frame" }, image);
    }
    if (cell.state === "planned") return make("span", { className: "frame" }, "not run yet");
    const title = cell.stage ? `${cell.stage} failed` : "failed";
    return make("span", { className: "frame" }, make("b", {}, title), cell.error);
  }

  function scores(cell) {
    const wanted = state.metric === ALL ? metrics : metrics.filter((metric) => metric === state.metric);
    return wanted.filter((metric) => metric in cell.metrics).flatMap((metric) => {
      const [low, high] = ranges[metric];
      const share = high > low ? (100 * (cell.metrics[metric] - low)) / (high - low) : 0;
      const line = make("span", { className: "score" }, make("i", {}, metric), number(cell.metrics[metric]));
      return [line, make("span", { className: "meter" }, make("i", { style: `width:${share}%` }))];
    });
  }

  function card(cell, captioned) {
    const kind = cell.thumb ? "" : cell.state === "planned" ? " waiting" : " failed";
    const button = make("button", { type: "button", className: `cell${kind}`, title: name(cell) }, frame(cell), ...scores(cell));
    if (captioned) button.append(make("span", { className: "caption" }, name(cell)));
    button.setAttribute("aria-label", `${name(cell)}${cell.error ? `, ${cell.error}` : ""}`);
    button.dataset.at = cell.at;
    return button;
  }

  /* ---- the grid and the list ---- */
  let lines = []; // what is shown, as rows of cell numbers: arrow keys go by it

  function draw() {
    const listed = state.layout === "list";
    const pages = listed ? [{ values: [], cells: sorted() }] : groups(data.cells, by("pages"));
    fillPager(pages);
    const chosen = state.page === ALL ? pages : [pages[Math.min(state.page, pages.length - 1)]];
    lines = [];
    nearby.disconnect();
    $("pictures").replaceChildren(...chosen.filter(Boolean).map((page) => leaf(page, listed)));
    $("sorting").hidden = !listed;
    $("roles").hidden = listed || !axes.length;
  }

  function leaf(page, listed) {
    const before = lines.length;
    const body = listed ? list(page.cells) : grid(page.cells);
    const across = listed ? Math.max(1, Math.floor($("pictures").clientWidth / (Number($("size").value) + 7))) : 1;
    const high = Math.ceil((lines.length - before) / across) * (Number($("size").value) / ratio + 40);
    const title = state.page === ALL ? page.values.map(([axis, value]) => `${axis} = ${shown(axis, value)}`).join(", ") : "";
    const style = `contain-intrinsic-size: auto ${Math.round(high)}px`; // what is not drawn yet takes about its room
    return make("div", { className: "leaf", style }, ...(title ? [make("h3", {}, title)] : []), make("div", { className: "scroll" }, body));
  }

  function sorted() {
    const [metric, down] = state.sort.split("\n");
    if (metric === "index") return data.cells;
    const value = (cell) => (metric in cell.metrics ? cell.metrics[metric] * (down ? -1 : 1) : Infinity);
    return [...data.cells].sort((one, other) => value(one) - value(other) || one.index - other.index);
  }

  function list(cells) {
    lines.push(...cells.map((cell) => [cell.at]));
    return make("div", { className: "list" }, ...cells.map((cell) => card(cell, true)));
  }

  function grid(cells) {
    const columns = groups(cells, by("columns"));
    const rows = groups(cells, by("rows"));
    const table = make("table", { className: "grid" });
    if (by("columns").length) {
      const corner = by("rows").length ? [make("td")] : [];
      table.append(make("thead", {}, make("tr", {}, ...corner, ...columns.map((column) => heading(column, "col")))));
    }
    const body = make("tbody");
    for (const row of rows) {
      const found = columns.map((column) => row.cells.filter((cell) => column.cells.includes(cell)));
      lines.push(found.flat().map((cell) => cell.at));
      const head = by("rows").length ? [heading(row, "row")] : [];
      body.append(make("tr", {}, ...head, ...found.map((own) => make("td", {}, ...own.map((cell) => card(cell, own.length > 1))))));
    }
    table.append(body);
    return table;
  }

  /* Text that may break after its dots and the like. */
  const breakable = (text) => text.split(/(?<=[._/=-])/).flatMap((part) => [part, make("wbr")]);

  function heading(group, scope) {
    const parts = group.values.map(([axis, value]) => make("span", { title: `${axis} = ${plain(value)}` }, make("i", {}, ...breakable(data.short[axis]), " "), shown(axis, value)));
    return make("th", { scope }, ...parts);
  }

  function fillPager(pages) {
    $("pager").hidden = pages.length < 2;
    const options = pages.map((page, at) => make("option", { value: at }, page.values.map(([axis, value]) => `${axis} = ${shown(axis, value)}`).join(", ")));
    $("page").replaceChildren(...options, make("option", { value: ALL }, `all ${pages.length} pages`));
    if (state.page !== ALL) state.page = Math.min(state.page, pages.length - 1);
    $("page").value = state.page;
  }

  function turn(by) {
    const count = $("page").options.length - 1;
    state.page = state.page === ALL ? 0 : (state.page + by + count) % count;
    draw();
  }

  function fillControls() {
    for (const axis of axes) {
      const options = ["rows", "columns", "pages"].map((role) => make("option", { value: role }, role));
      const select = make("select", {}, ...options);
      select.dataset.axis = axis;
      select.value = state.roles[axis];
      select.addEventListener("change", () => { state.roles[axis] = select.value; draw(); });
      $("roles").append(make("label", {}, `${axis} (${data.axes[axis].length})`, select));
    }
    const sorts = metrics.flatMap((metric) => [["\ndown", "highest"], ["", "lowest"]].map(([how, word]) => make("option", { value: metric + how }, `${metric}, ${word} first`)));
    $("sort").append(make("option", { value: "index" }, "order of the sweep"), ...sorts);
    const several = metrics.length > 1 ? [make("option", { value: ALL }, "all")] : [];
    $("metric").append(...metrics.map((metric) => make("option", { value: metric, title: data.metrics[metric] }, metric)), ...several, make("option", { value: "" }, "none"));
    $("layout").value = state.layout;
    $("metric").value = state.metric;
    for (const key of ["layout", "sort", "metric"]) $(key).addEventListener("change", (event) => { state[key] = event.target.value; draw(); });
    $("page").addEventListener("change", (event) => { state.page = event.target.value === ALL ? ALL : Number(event.target.value); draw(); });
    $("previous-page").addEventListener("click", () => turn(-1));
    $("next-page").addEventListener("click", () => turn(1));
    $("size").addEventListener("input", (event) => resize(event.target.value));
    const narrow = matchMedia("(max-width: 760px)").matches;
    $("arrange").open = !narrow;
    resize(narrow ? 104 : data.cells.length > 300 ? 112 : 152);
  }

  /* Thumbnails of one shape lie close together; of several shapes each has a square. */
  let ratio = 1;
  function shape() {
    const ratios = data.cells.filter((cell) => cell.thumb).map((cell) => cell.size[0] / cell.size[1]);
    const alike = ratios.length && Math.max(...ratios) < 1.02 * Math.min(...ratios);
    ratio = alike ? ratios[0] : 1;
    document.documentElement.style.setProperty("--ratio", ratio);
  }

  function resize(pixels) {
    $("size").value = pixels;
    document.documentElement.style.setProperty("--size", `${pixels}px`);
  }

  /* ---- what else is on the page ---- */
  function fillPage() {
    const failed = data.cells.filter((cell) => !cell.thumb && cell.state !== "planned");
    const waiting = data.cells.filter((cell) => cell.state === "planned").length;
    const count = data.cells.length;
    $("summary").append(`${count} picture${count === 1 ? "" : "s"}, `);
    if (failed.length) $("summary").append(make("b", { className: "bad" }, `${failed.length} failed`), ", ");
    if (waiting) $("summary").append(`${waiting} not run yet, `);
    $("summary").append(data.started.replace("T", " ").replace("+00:00", " UTC"));
    $("failures").hidden = !failed.length;
    const reasons = new Map();
    for (const cell of failed) {
      const why = `${cell.stage ? `${cell.stage}: ` : ""}${cell.error}`;
      reasons.set(why, [...(reasons.get(why) || []), cell]);
    }
    for (const [why, cells] of reasons) {
      const count = cells.length > 1 ? `${cells.length} pictures: ` : `#${cells[0].index} `;
      const button = make("button", { type: "button" }, make("b", {}, count), why);
      button.dataset.at = cells[0].at;
      $("failures").querySelector("ul").append(make("li", {}, button));
    }
    const quote = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replace(/'/g, "'\"'\"'")}'`);
    $("whole-command").textContent = ["python", "-m", "claygraph", ...data.command.slice(1).map(quote)].join(" ");
    const { planned, distinct, run, cached } = data.nodes;
    $("nodes").textContent = `${planned} nodes in ${count} graphs are ${distinct} different ones; ${run} were computed, ${cached} were there already.`;
  }

  function fillEffects() {
    const measured = metrics.filter((metric) => data.effects.some((effect) => effect.metric === metric));
    $("effects").hidden = !measured.length;
    $("effect-metric").append(...measured.map((metric) => make("option", { value: metric }, metric)));
    $("effect-metric").addEventListener("change", drawEffects);
    $("formula").textContent = data.formula;
    if (measured.length) drawEffects();
  }

  function drawEffects() {
    const metric = $("effect-metric").value;
    const own = data.effects.filter((effect) => effect.metric === metric);
    const levels = own.flatMap((effect) => effect.levels);
    const low = Math.min(...levels.map((level) => level.mean - level.spread));
    const high = Math.max(...levels.map((level) => level.mean + level.spread));
    const percent = (value) => (high > low ? (100 * (value - low)) / (high - low) : 50);
    $("about").textContent = data.metrics[metric];
    $("chart").replaceChildren(...own.map((effect) => make("div", { className: "effect" },
      make("h3", {}, make("span", {}, effect.axis), make("span", {}, `${(100 * effect.share).toFixed(1)} %`)),
      make("div", { className: "share" }, make("i", { style: `width:${100 * effect.share}%` })),
      ...effect.levels.map((level) => drawLevel(effect.axis, level, percent)))));
  }

  function drawLevel(axis, level, percent) {
    const [from, to] = [percent(level.mean - level.spread), percent(level.mean + level.spread)];
    const track = make("span", { className: "track" }, make("i", { style: `left:${from}%;width:${to - from}%` }), make("b", { style: `left:${percent(level.mean)}%` }));
    const words = `${number(level.mean)} ± ${number(level.spread)}, n = ${level.count}`;
    return make("div", { className: "level" }, make("span", { title: plain(level.value) }, shown(axis, level.value)), track, make("span", {}, words));
  }

  /* ---- one picture, large ---- */
  const view = { at: 0, scale: 1, x: 0, y: 0, wipe: 0.5, against: "", pinned: null, width: 1, height: 1 };
  const nobody = { path: "", source: "", thumb: "", metrics: {}, axes: {} };

  function open(at) {
    view.at = at;
    const cell = data.cells[at];
    if (!$("zoom").open) $("zoom").showModal();
    [view.width, view.height] = cell.size[0] ? cell.size : [1, 1];
    $("zoom-title").textContent = name(cell);
    $("canvas").hidden = !cell.thumb;
    $("broken").hidden = Boolean(cell.thumb);
    $("broken").textContent = cell.state === "planned" ? "Not run yet." : `${cell.stage ? `${cell.stage}: ` : ""}${cell.error}`;
    show($("front"), cell.path, cell.thumb);
    $("file").hidden = !cell.path;
    if (cell.path) $("file").href = cell.path;
    $("command").textContent = cell.command;
    const scored = metrics.filter((metric) => metric in cell.metrics);
    rows("scores", scored.map((metric) => [metric, number(cell.metrics[metric]), data.metrics[metric]]));
    rows("settings", [["image", plain(cell.image)], ...axes.filter((axis) => axis !== "image").map((axis) => [axis, plain(cell.axes[axis])])]);
    fillAgainst(cell);
    lay();
    fit();
  }

  function show(image, path, thumb) {
    image.onerror = () => { image.onerror = null; image.src = thumb; };
    if (path || thumb) image.src = path || thumb;
    else image.removeAttribute("src");
  }

  function rows(id, values) {
    $(id).hidden = !values.length;
    const made = values.map(([head, value, title]) => make("tr", { title: title || "" }, make("th", { scope: "row" }, head), make("td", {}, value)));
    $(id).querySelector("tbody").replaceChildren(...made);
  }

  function fillAgainst(cell) {
    const others = data.cells.filter((other) => other.thumb && other !== cell);
    const option = (value, text) => make("option", { value }, text);
    const pinned = view.pinned === null || view.pinned === view.at ? [] : [option("pinned", `pinned ${name(data.cells[view.pinned])}`)];
    const source = cell.source ? [option("source", "the source")] : [];
    const group = make("optgroup", { label: "another picture" }, ...others.map((other) => option(other.at, name(other))));
    $("against").replaceChildren(option("", "nothing"), ...source, ...pinned, group);
    $("against").value = view.against;
    if ($("against").value !== view.against) $("against").value = view.against = "";
    $("pin").textContent = view.pinned === view.at ? "Unpin" : "Pin";
    $("pin").disabled = !cell.thumb;
  }

  /* Lay the other picture over this one, where there is one to wipe against. */
  function lay() {
    const cell = data.cells[view.at];
    const at = view.against === "pinned" ? view.pinned : view.against;
    const other = view.against === "source" ? { ...nobody, path: cell.source } : view.against === "" ? nobody : data.cells[at];
    const on = Boolean(cell.thumb && other.path);
    if (on) show($("back"), other.path, other.thumb);
    for (const id of ["back", "handle", "front-name", "back-name"]) $(id).hidden = !on;
    $("front-name").textContent = `#${cell.index}`;
    $("back-name").textContent = view.against === "source" ? "source" : on ? name(other) : "";
    move();
  }

  function fit() {
    const { clientWidth: wide, clientHeight: high } = $("stage");
    view.scale = Math.min(wide / view.width, high / view.height) * 0.96;
    view.x = (wide - view.width * view.scale) / 2;
    view.y = (high - view.height * view.scale) / 2;
    move();
  }

  function zoomBy(factor, x = $("stage").clientWidth / 2, y = $("stage").clientHeight / 2) {
    const scale = Math.min(64, Math.max(0.02, view.scale * factor));
    view.x = x - ((x - view.x) * scale) / view.scale;
    view.y = y - ((y - view.y) * scale) / view.scale;
    view.scale = scale;
    move();
  }

  function move() {
    const canvas = $("canvas");
    canvas.style.width = `${view.width}px`;
    canvas.style.height = `${view.height}px`;
    canvas.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
    canvas.classList.toggle("sharp", view.scale * devicePixelRatio >= 3);
    $("back").style.clipPath = `inset(0 0 0 ${100 * view.wipe}%)`;
    $("handle").style.transform = `translateX(${view.x + view.wipe * view.width * view.scale}px)`;
    $("handle").setAttribute("aria-valuenow", Math.round(100 * view.wipe));
    $("scale").textContent = `${Math.round(100 * view.scale)} %`;
  }

  function wipeTo(share) {
    view.wipe = Math.min(1, Math.max(0, share));
    move();
  }

  /* The neighbour of a cell in what is shown, that many rows down and columns across. */
  function neighbour(at, down, across) {
    const row = lines.findIndex((line) => line.includes(at));
    if (row < 0) return at;
    if (state.layout === "list" || !down) {
      const flat = lines.flat();
      return flat[flat.indexOf(at) + across + down * (state.layout === "list" ? perLine() : 0)] ?? at;
    }
    const line = lines[row + down];
    return line ? line[Math.min(lines[row].indexOf(at), line.length - 1)] ?? at : at;
  }

  function perLine() {
    const cards = [...document.querySelectorAll(".list .cell")];
    const first = cards.findIndex((each) => each.offsetTop > cards[0].offsetTop);
    return first < 0 ? cards.length : first;
  }

  function pin() {
    view.pinned = view.pinned === view.at ? null : view.at;
    if (view.against === "pinned") view.against = "";
    say(view.pinned === null ? "Unpinned." : "Pinned: open another picture and wipe it against this one.");
    fillAgainst(data.cells[view.at]);
    lay();
  }

  function against(value) {
    view.against = value;
    $("against").value = value;
    lay();
  }

  const toggleWipe = () => against(view.against ? "" : view.pinned !== null && view.pinned !== view.at ? "pinned" : data.cells[view.at].source ? "source" : "");

  let silence;
  function say(text) {
    ($("zoom").open ? $("zoom") : document.body).append($("said"));
    $("said").textContent = text;
    clearTimeout(silence);
    silence = setTimeout(() => { $("said").textContent = ""; }, 2500);
  }

  async function copy(code) {
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    say("Copied.");
  }

  /* ---- hands ---- */
  const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const KEYS = {
    "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(0.8), 0: fit,
    w: toggleWipe, p: () => data.cells[view.at].thumb && pin(), c: () => copy($("command")),
  };

  function onKeyInZoom(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
    if (event.target === $("handle") && event.key.startsWith("Arrow")) wipeTo(view.wipe + (/Left|Down/.test(event.key) ? -0.02 : 0.02));
    else if (event.key in STEPS) open(neighbour(view.at, ...STEPS[event.key]));
    else if (event.key in KEYS) KEYS[event.key]();
    else return;
    event.preventDefault();
  }

  function onKeyInGrid(event) {
    const button = event.target.closest(".cell");
    if (!button || !(event.key in STEPS)) return;
    const next = neighbour(Number(button.dataset.at), ...STEPS[event.key]);
    $("pictures").querySelector(`.cell[data-at="${next}"]`)?.focus();
    event.preventDefault();
  }

  function listen() {
    document.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-at]");
      if (button) open(Number(button.dataset.at));
      if (event.target.matches(".copy")) copy(event.target.previousElementSibling);
    });
    $("pictures").addEventListener("keydown", onKeyInGrid);
    $("zoom").addEventListener("keydown", onKeyInZoom);
    $("zoom").addEventListener("close", () => $("pictures").querySelector(`.cell[data-at="${view.at}"]`)?.focus());
    const buttons = {
      close: () => $("zoom").close(), previous: () => open(neighbour(view.at, 0, -1)), next: () => open(neighbour(view.at, 0, 1)),
      larger: () => zoomBy(1.25), smaller: () => zoomBy(0.8), fit, pin,
    };
    for (const [id, act] of Object.entries(buttons)) $(id).addEventListener("click", act);
    $("against").addEventListener("change", (event) => against(event.target.value));
    $("stage").addEventListener("wheel", onWheel, { passive: false });
    $("stage").addEventListener("dblclick", (event) => zoomBy(1 / view.scale, ...within(event)));
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) $("stage").addEventListener(kind, onPointer);
    addEventListener("resize", () => $("zoom").open && fit());
  }

  function within(event) {
    const box = $("stage").getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  function onWheel(event) {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), ...within(event));
  }

  const fingers = new Map();
  let wiping = false;

  /* One pointer moves the picture or the wipe, two pinch. */
  function onPointer(event) {
    const at = within(event);
    if (event.type === "pointerdown") {
      wiping = event.target === $("handle");
      $("stage").setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, at);
    } else if (event.type !== "pointermove") {
      fingers.delete(event.pointerId);
      wiping = wiping && fingers.size > 0;
    } else if (fingers.has(event.pointerId)) {
      const before = fingers.get(event.pointerId);
      fingers.set(event.pointerId, at);
      if (wiping) wipeTo((at[0] - view.x) / (view.width * view.scale));
      else if (fingers.size === 2) pinch(event.pointerId, before);
      else drag(at[0] - before[0], at[1] - before[1]);
    }
  }

  function drag(across, down) {
    view.x += across;
    view.y += down;
    move();
  }

  function pinch(moved, before) {
    const [other] = [...fingers].filter(([id]) => id !== moved).map(([, at]) => at);
    const now = fingers.get(moved);
    const apart = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]) || 1;
    zoomBy(apart(now) / apart(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    drag((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
  }

  shape();
  fillControls();
  fillPage();
  fillEffects();
  listen();
  draw();
})();
