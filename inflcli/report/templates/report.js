"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const articles = [...document.querySelectorAll("article.query")];
  const links = [...document.querySelectorAll("#list a")];
  const tip = byId("tip"), say = byId("say"), find = byId("find");
  const LEVELS = 10, GAMMA = 0.7, FAINT = 0.02;
  let open = -1, shading = data.shadings[0];

  // Text of the corpus goes through textContent and nothing else.
  function make(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function draw(tag, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }
  function signed(value) {
    const size = Math.abs(value);
    if (size === 0) return "0";
    const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : size >= 0.1 ? 4 : 5;
    const plain = size >= 1e-3 && size < 1e6;
    const body = plain
      ? size.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })
      : size.toExponential(2);
    return (value > 0 ? "+" : "\u2212") + body;
  }
  // Tokens and influences are unpacked when they are first looked at.
  function units(number) {
    const text = data.texts[number];
    text.units ??= text.t.map((i) => data.strings[i]);
    return text.units;
  }
  function weights(entry, name = shading) {
    const packed = entry.w?.[name];
    if (packed) packed.values ??= packed.steps.map((steps) => steps * packed.unit);
    return packed?.values;
  }
  const strongestIn = (box) => box.query.strongest[shading];
  const shown = (unit) => unit.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t");
  const inline = (unit) => unit.replaceAll("\n", "↵").replaceAll("\t", "⇥");

  // Cards
  function level(value, strongest) {
    const share = strongest ? Math.abs(value) / strongest : 0;
    if (share < FAINT) return "";
    const step = Math.max(1, Math.min(LEVELS, Math.round(LEVELS * share ** GAMMA)));
    return (value > 0 ? "p" : "n") + step;
  }
  function fill(box, whole) {
    const entry = box.entry, strongest = strongestIn(box);
    const text = data.texts[entry.n], strings = units(entry.n), values = weights(entry);
    const [start, stop] = whole ? [0, strings.length] : entry.cut;
    const special = new Set(text.special);
    const begins = new Map(text.sources.map((source) => [source.units[0], source]));
    const parts = document.createDocumentFragment();
    if (start > 0) parts.append(make("span", "gap", "… "));
    for (let i = start; i < stop; i++) {
      if (text.sources.length > 1 && begins.has(i)) parts.append(make("span", "doc", begins.get(i).id));
      const unit = make("span", "t", shown(strings[i]));
      if (special.has(i)) unit.classList.add("sp");
      if (values) {
        const name = level(values[i], strongest);
        if (name) unit.classList.add(name);
      }
      unit.dataset.i = i;
      parts.append(unit);
    }
    if (stop < strings.length) parts.append(make("span", "gap", " …"));
    box.replaceChildren(parts);
    box.classList.toggle("all", whole);
  }
  function layers(entry) {
    const count = entry.groups.length, step = 7, height = 22;
    const largest = Math.max(...entry.groups.map(Math.abs), 1e-30);
    const low = Math.min(...entry.groups), high = Math.max(...entry.groups);
    // With both signs the axis lies where they share the height by their sizes.
    const up = Math.max(high, 0), down = Math.max(-low, 0);
    const zero = height * up / (up + down || 1);
    const svg = draw("svg", { class: "layers", width: count * step, height, role: "img" });
    const words = entry.groups.map((value, i) => `${data.groups[i]}: ${signed(value)}`);
    const title = draw("title", {});
    title.textContent = "By depth, lowest first. " + words.join("; ");
    svg.setAttribute("aria-label", title.textContent);
    svg.append(title);
    entry.groups.forEach((value, i) => {
      const size = Math.max(1, height * Math.abs(value) / (up + down || largest));
      const y = value > 0 ? zero - size : zero;
      svg.append(draw("rect", { class: value > 0 ? "plus" : "minus", x: i * step, width: step - 2, y, height: size }));
    });
    return svg;
  }
  function where(source) {
    const [from, to] = source.chars;
    const number = (value) => value.toLocaleString("en");
    const line = make("span", "where", source.place === source.id ? "" : source.place + " · ");
    line.append(make("span", "nowrap", `characters ${number(from)}–${number(to)}`));
    return line;
  }
  function describe(source) {
    const line = make("span");
    if (source.title) line.append(make("b", "", source.title));
    line.append(make("bdi", "", source.id), " ", where(source));
    return line;
  }
  function influenceOf(entry, source) {
    if (!entry.w) return "";
    return signed(weights(entry, data.shadings[0]).slice(...source.units).reduce((sum, value) => sum + value, 0));
  }
  function others(entry, sources) {
    const rest = sources.filter((_, i) => i !== entry.main);
    const details = make("details");
    const plural = rest.length === 1 ? "" : "s";
    details.append(make("summary", "", `and ${rest.length} other document${plural} in this sequence`));
    const list = make("ul");
    for (const source of rest) {
      const item = make("li");
      item.append(describe(source), " ", make("b", "num", influenceOf(entry, source)));
      list.append(item);
    }
    details.append(list);
    return details;
  }
  function card(entry, sign, query, largest) {
    const text = data.texts[entry.n];
    const item = make("li", `card ${sign}`);
    const gauge = make("div", "gauge"), filled = make("i");
    filled.style.width = `${Math.max(1, 100 * Math.abs(entry.score) / largest)}%`;
    gauge.append(filled);
    const head = make("header");
    const score = make("span", "score", signed(entry.score));
    score.title = `sequence ${entry.n} of the corpus`;
    head.append(make("span", "rank", String(entry.rank)), score);
    if (data.nats) head.append(make("span", "nats", `${signed(entry.nats)} nats`));
    if (data.candidates !== null) {
      const found = entry.tfidf === null ? `TF-IDF: not in the top ${data.candidates.toLocaleString("en")}` : `TF-IDF: rank ${entry.tfidf.toLocaleString("en")}`;
      head.append(make("span", "tfidf", found));
    }
    if (entry.spurious) {
      const flag = make("span", "spurious", "one token carries it");
      flag.title = "One token or two hold most of this sequence’s influence; such a match often says little.";
      head.append(flag);
      item.classList.add("spurious");
    }
    head.append(layers(entry));
    item.append(gauge, head);
    if (entry.main !== null) {
      const line = make("div", "source");
      line.append(describe(text.sources[entry.main]));
      item.append(line);
      if (text.sources.length > 1) item.append(others(entry, text.sources));
    }
    if (shading && !entry.w) item.append(make("p", "unshaded", "Beyond the sequences that attribute took (its --top-k), so without shading."));
    const box = make("div", "tokens");
    box.tabIndex = 0;
    box.dir = "auto";
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "Training text; arrow keys walk through its tokens");
    box.entry = entry;
    box.query = query;
    fill(box, false);
    item.append(box);
    if (entry.cut[0] > 0 || entry.cut[1] < text.t.length) item.append(opener(box, text));
    return item;
  }
  function opener(box, text) {
    const button = make("button", "more");
    button.type = "button";
    let whole = false;
    const label = () => {
      button.textContent = whole ? "Show less" : `Show the whole sequence (${text.tokens.toLocaleString("en")} tokens)`;
      button.setAttribute("aria-expanded", String(whole));
    };
    button.addEventListener("click", () => {
      whole = !whole;
      fill(box, whole);
      label();
      // Opened at the part that was in sight before.
      const first = whole && box.querySelector(`[data-i="${box.entry.cut[0]}"]`);
      if (first) box.scrollTop = first.offsetTop - box.offsetTop - 40;
    });
    label();
    return button;
  }

  // Queries
  function layOut(number) {
    const query = data.queries[number];
    for (const list of articles[number].querySelectorAll(".cards")) {
      if (list.childElementCount) continue;
      const entries = query[list.dataset.sign];
      const largest = Math.max(...entries.map((entry) => Math.abs(entry.score)), 1e-30);
      list.append(...entries.map((entry) => card(entry, list.dataset.sign, query, largest)));
    }
  }
  function show(number, scroll) {
    if (number === open || !articles[number]) return;
    hideTip();
    open = number;
    articles.forEach((article, i) => { article.hidden = i !== number; });
    links.forEach((link, i) => {
      if (i === number) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
    layOut(number);
    links[number].scrollIntoView({ block: "nearest" });
    if (scroll) window.scrollTo({ top: narrow.matches ? byId("main").offsetTop : 0, behavior: "instant" });
  }
  function fromAddress(scroll) {
    const found = /^#q(\d+)$/.exec(location.hash);
    if (found) show(Number(found[1]) - 1, scroll);
    else if (open < 0) show(0, false);
  }
  function step(by) {
    const left = links.map((link, i) => i).filter((i) => !links[i].parentElement.hidden);
    const at = left.indexOf(open);
    const next = left[Math.max(0, Math.min(left.length - 1, at + by))];
    if (next !== undefined && next !== open) location.hash = `#q${next + 1}`;
  }
  function search() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const link of links) {
      const text = link.textContent.toLowerCase();
      link.parentElement.hidden = !words.every((word) => text.includes(word));
      left += !link.parentElement.hidden;
    }
    byId("none").hidden = left > 0;
  }
  const narrow = matchMedia("(max-width: 900px)");
  const queries = document.querySelector(".queries");
  const fold = () => { queries.open = !narrow.matches; };
  narrow.addEventListener("change", fold);
  fold();

  // Which sequences: one choice for all queries.
  function only(which) {
    for (const columns of document.querySelectorAll(".columns")) {
      if (which === "both") delete columns.dataset.only;
      else columns.dataset.only = which;
    }
    press("show", which);
  }
  function press(choice, value) {
    for (const button of document.querySelectorAll(`.switch button[data-${choice}]`)) {
      button.setAttribute("aria-pressed", String(button.dataset[choice] === value));
    }
  }
  // Which attribution shades them.
  function shade(name) {
    mark(null);
    shading = name;
    press("shade", name);
    for (const part of document.querySelectorAll("[data-for]")) part.hidden = part.dataset.for !== name;
    for (const box of document.querySelectorAll(".tokens")) fill(box, box.classList.contains("all"));
  }

  // Tokens
  function tell(unit) {
    const box = unit.closest(".tokens");
    if (!box) return null;
    const i = Number(unit.dataset.i), text = data.texts[box.entry.n];
    const strings = units(box.entry.n), values = weights(box.entry);
    const next = i + 1 < strings.length ? inline(strings[i + 1]) : null;
    const lines = [], strongest = strongestIn(box);
    lines.push(["token", inline(strings[i])]);
    // An input token's value is its own, the others' that of predicting the next.
    if (shading === "input_tokens") lines.push(["read"]);
    else lines.push(next === null ? ["end"] : ["predicts", next]);
    if (values) {
      const share = strongest ? Math.round(100 * Math.abs(values[i]) / strongest) : 0;
      lines.push(["value", signed(values[i]), `${share}% of this query’s strongest token`]);
    }
    if (text.many.includes(i)) lines.push(["many"]);
    return lines;
  }
  function fillTip(lines) {
    tip.replaceChildren();
    for (const [kind, first, second] of lines) {
      const line = make("div");
      if (kind === "token") line.append(make("q", "", first));
      if (kind === "predicts") line.append("predicts ", make("q", "", first));
      if (kind === "end") line.append("the last token: it predicts nothing");
      if (kind === "read") line.append("as it is read");
      if (kind === "value") line.append(make("b", "", first), make("small", "", second));
      if (kind === "many") line.append(make("small", "", "several tokens that make one character"));
      // One line: “token” predicts “next”.
      if (kind === "predicts" || kind === "end" || kind === "read") tip.lastChild.append(" ", ...line.childNodes);
      else if (kind === "value" && tip.lastChild) tip.lastChild.append(": ", ...line.childNodes);
      else tip.append(line);
    }
  }
  function showTip(unit, aloud) {
    const lines = tell(unit);
    if (!lines) return;
    fillTip(lines);
    tip.hidden = false;
    const at = unit.getClientRects()[0] || unit.getBoundingClientRect();
    const width = tip.offsetWidth, height = tip.offsetHeight;
    const left = Math.max(6, Math.min(at.left, document.documentElement.clientWidth - width - 6));
    const above = at.top - height - 7;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < 4 ? at.bottom + 7 : above}px`;
    if (aloud) say.textContent = tip.innerText;
  }
  function hideTip() { tip.hidden = true; }
  let current = null;
  function mark(unit) {
    if (current) current.classList.remove("on");
    current = unit;
    if (!unit) return hideTip();
    unit.classList.add("on");
    unit.scrollIntoView({ block: "nearest" });
    showTip(unit, true);
  }
  function strongestOf(box) {
    const spans = [...box.querySelectorAll(".t")], values = weights(box.entry);
    if (!values) return spans[0];
    return spans.reduce((best, span) => Math.abs(values[span.dataset.i]) > Math.abs(values[best.dataset.i]) ? span : best);
  }
  function walk(event, box) {
    const spans = [...box.querySelectorAll(".t")];
    const at = spans.indexOf(current);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 }[event.key];
    if (event.key === "Escape") return mark(null);
    if (to === undefined || !spans.length) return;
    event.preventDefault();
    if (at < 0 && event.key.startsWith("Arrow")) return mark(strongestOf(box));
    mark(spans[Math.max(0, Math.min(spans.length - 1, to))]);
  }

  document.addEventListener("pointerover", (event) => {
    const unit = event.target.closest?.(".tokens .t");
    if (unit) showTip(unit, false);
    else if (!current) hideTip();
  });
  document.addEventListener("click", (event) => {
    const unit = event.target.closest(".tokens .t");
    if (unit) mark(unit);
    else if (current) mark(null);
    const button = event.target.closest(".switch button");
    if (button?.dataset.show) only(button.dataset.show);
    if (button?.dataset.shade) shade(button.dataset.shade);
  });
  document.addEventListener("focusout", (event) => { if (event.target.classList?.contains("tokens")) mark(null); });
  document.addEventListener("scroll", () => { if (!current) hideTip(); }, { passive: true });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === find) {
      if (event.key === "Escape") { find.value = ""; search(); find.blur(); }
      if (event.key === "Enter") { const first = links.find((link) => !link.parentElement.hidden); if (first) first.click(); }
      return;
    }
    if (event.target.classList?.contains("tokens")) walk(event, event.target);
    if (event.key === "/") { event.preventDefault(); queries.open = true; find.focus(); }
    if (event.key === "j") step(1);
    if (event.key === "k") step(-1);
  });
  find.addEventListener("input", search);
  document.addEventListener("change", (event) => {
    if (event.target.dataset?.hide === undefined) return;
    const hide = event.target.checked;
    document.body.classList.toggle("no-spurious", hide);
    for (const box of document.querySelectorAll("[data-hide]")) box.checked = hide;
  });
  window.addEventListener("hashchange", () => fromAddress(true));
  document.querySelector("#list").addEventListener("click", (event) => {
    if (narrow.matches && event.target.closest("a")) queries.open = false;
  });
  fromAddress(false);
})();
