"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const articles = [...document.querySelectorAll("article.query")];
  const links = [...document.querySelectorAll("#list a")];
  const tip = byId("tip"), say = byId("say"), find = byId("find");
  const LEVELS = 10, GAMMA = 0.7, FAINT = 0.02;
  // Which attribution shades the texts, and of which depth group; null for all of them.
  let open = -1, shading = data.shadings[0], layer = null;
  let only = "both", hiding = false;

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
  function bytesOf(id) {
    const coded = atob(byId(id).textContent), bytes = new Uint8Array(coded.length);
    for (let i = 0; i < coded.length; i++) bytes[i] = coded.charCodeAt(i);
    return bytes;
  }
  // Of each query, inflated when it is first needed.
  async function inflate(id) {
    const stream = new Blob([bytesOf(id)]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }
  // An element that the parser may not have come to, or not be through with.
  async function element(id) {
    if (!byId(id)?.nextElementSibling && document.readyState === "loading") {
      await new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
    }
    return byId(id);
  }
  const reading = [];
  function read(number) {
    reading[number] ??= unpack(number);
    return reading[number];
  }
  async function unpack(number) {
    await element(`packed${number + 1}`);
    const bytes = await inflate(`packed${number + 1}`), texts = new Map();
    const length = new DataView(bytes).getUint32(0, true);
    const query = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
    const size = data.wide ? 4 : 2, Kind = data.wide ? Uint32Array : Uint16Array;
    let at = 4 + length;
    for (const text of query.texts) {
      text.numbers = new Kind(bytes, at, text.units);
      at += size * text.units;
      texts.set(text.n, text);
    }
    const entries = [...query.positive, ...query.negative];
    for (const entry of entries) entry.text = texts.get(entry.n);
    const shaded = entries.filter((entry) => entry.w);
    const count = shaded.reduce((sum, entry) => sum + entry.text.units, 0) * data.shadings.length;
    const low = new Uint8Array(bytes, at, count), high = new Int8Array(bytes, at + count, count);
    const steps = Int16Array.from(low, (byte, i) => byte + 256 * high[i]);
    let first = 0;
    for (const entry of shaded) {
      for (const name of data.shadings) {
        entry.w[name] = { unit: entry.w[name], steps: steps.subarray(first, first + entry.text.units) };
        first += entry.text.units;
      }
    }
    at += 2 * count;
    for (const entry of shaded) {
      const length = entry.text.units * data.groups.length;
      entry.map = { unit: entry.map, steps: new Int8Array(bytes, at, length) };
      at += length;
    }
    return query;
  }
  function units(entry) {
    const text = entry.text;
    text.words ??= Array.from(text.numbers, (number) => data.strings[number]);
    return text.words;
  }
  function weights(entry, name = shading, group = layer) {
    if (!entry.w) return undefined;
    if (group !== null && name === data.shadings[0]) return inGroup(entry, group);
    const packed = entry.w[name];
    packed.values ??= Array.from(packed.steps, (steps) => steps * packed.unit);
    return packed.values;
  }
  function inGroup(entry, group) {
    const { unit, steps } = entry.map, length = entry.text.units;
    return Array.from(steps.subarray(group * length, (group + 1) * length), (step) => step * unit);
  }
  const strongestOf = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  function strongestIn({ query }, name = shading) {
    if (layer === null || name !== data.shadings[0]) return query.strongest[name];
    query.strongestOfGroup ??= data.groups.map((_, group) => {
      const shaded = [...query.positive, ...query.negative].filter((entry) => entry.w);
      return shaded.reduce((most, entry) => Math.max(most, strongestOf(inGroup(entry, group))), 0);
    });
    return query.strongestOfGroup[layer];
  }
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
    const text = entry.text, strings = units(entry), values = weights(entry);
    const [start, stop] = whole ? [0, strings.length] : entry.cut;
    const special = new Set(text.special);
    const begins = new Map(text.sources.map((source) => [source.units[0], source]));
    const parts = document.createDocumentFragment();
    let run = null, runEnds = 0;
    if (start > 0) parts.append(make("span", "gap", "… "));
    for (let i = start; i < stop; i++) {
      if (text.sources.length > 1 && begins.has(i)) {
        parts.append(make("span", "doc", begins.get(i).id));
        runEnds = i;
      }
      const copied = i >= runEnds && entry.copied.find(([from, to]) => from <= i && i < to);
      if (copied) {
        run = make("span", "copied");
        run.title = "word for word in the query";
        runEnds = copied[1];
        parts.append(run);
      }
      const unit = make("span", "t", shown(strings[i]));
      if (special.has(i)) unit.classList.add("sp");
      if (values) {
        const name = level(values[i], strongest);
        if (name) unit.classList.add(name);
      }
      unit.dataset.i = i;
      (i < runEnds ? run : parts).append(unit);
    }
    if (stop < strings.length) parts.append(make("span", "gap", " …"));
    box.replaceChildren(parts);
    box.classList.toggle("all", whole);
    if (box.map) drawMap(box);
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
    return signed(weights(entry, data.shadings[0], null).slice(...source.units).reduce((sum, value) => sum + value, 0));
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
    const text = entry.text;
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
    entry.there.forEach((rank, i) => {
      const place = rank === null ? "not scanned" : `rank ${rank.toLocaleString("en")}`;
      head.append(make("span", "tfidf", `${data.compared[i]}: ${place}`));
    });
    if (entry.spurious) {
      const flag = make("span", "spurious", "one token carries it");
      flag.title = "One token or two hold most of this sequence’s influence; such a match often says little.";
      head.append(flag);
      item.classList.add("spurious");
    }
    const copied = entry.copied.reduce((sum, [start, stop]) => sum + stop - start, 0);
    if (copied) {
      const flag = make("span", "repeats", `repeats ${copied} tokens`);
      flag.title = "Word for word in the query, and outlined in the text.";
      head.append(flag);
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
    const buttons = make("div", "buttons");
    if (entry.cut[0] > 0 || entry.cut[1] < text.units) buttons.append(opener(box, text));
    if (entry.w) buttons.append(mapper(box));
    item.append(buttons);
    if (entry.duplicates.length) item.append(folded(entry, sign, query, largest));
    return item;
  }
  // Near-duplicates, laid out when they are asked for.
  function folded(entry, sign, query, largest) {
    const details = make("details", "duplicates"), count = entry.duplicates.length;
    const ranks = entry.duplicates.join(", ");
    details.append(make("summary", "", `and ${count} nearly the same: rank${count === 1 ? "" : "s"} ${ranks}`));
    const list = make("ol", "cards");
    details.append(list);
    details.addEventListener("toggle", () => {
      if (!details.open || list.childElementCount) return;
      const members = query[sign].filter((other) => other.duplicate === entry.rank);
      list.append(...members.map((other) => card(other, sign, query, largest)));
    });
    return details;
  }

  // Layers × tokens
  const ROW = 14;
  function mapper(box) {
    const button = make("button", "more", "Layers × tokens");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      if (box.map) {
        box.map.remove();
        box.map = null;
      } else {
        box.map = make("div", "map");
        box.after(box.map);
        drawMap(box);
      }
      button.setAttribute("aria-expanded", String(Boolean(box.map)));
    });
    return button;
  }
  function drawMap(box) {
    const entry = box.entry, strings = units(entry), count = data.groups.length;
    const spans = [...box.querySelectorAll(".t")].map((unit) => Number(unit.dataset.i));
    const first = spans[0], width = spans.length;
    const names = make("div", "names"), scroll = make("div", "scroll"), canvas = make("canvas");
    // The highest layers on top.
    for (let group = count - 1; group >= 0; group--) names.append(make("span", "", data.groups[group]));
    // It may be wider than its card: the keyboard scrolls it, too.
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "group");
    scroll.setAttribute("aria-label", "Influence by layers and tokens");
    scroll.append(canvas);
    box.map.replaceChildren(names, scroll);
    const cell = Math.max(5, Math.min(18, Math.floor(scroll.clientWidth / width)));
    const sharp = window.devicePixelRatio || 1;
    canvas.width = cell * width * sharp;
    canvas.height = ROW * count * sharp;
    canvas.style.width = `${cell * width}px`;
    canvas.style.height = `${ROW * count}px`;
    const style = getComputedStyle(document.documentElement), pen = canvas.getContext("2d");
    const colours = ["--plus-rgb", "--minus-rgb"].map((name) => style.getPropertyValue(name));
    const rows = data.groups.map((_, group) => inGroup(entry, group));
    const strongest = Math.max(...rows.map(strongestOf), 1e-30);
    pen.scale(sharp, sharp);
    let best = [0, 0];
    rows.forEach((row, group) => {
      const y = ROW * (count - 1 - group);
      for (let i = 0; i < width; i++) {
        const value = row[first + i], share = Math.abs(value) / strongest;
        if (share > Math.abs(rows[best[0]][best[1]]) / strongest) best = [group, first + i];
        if (share < FAINT) continue;
        pen.fillStyle = `rgb(${colours[value > 0 ? 0 : 1]} / ${(0.15 + 0.85 * share ** GAMMA).toFixed(3)})`;
        pen.fillRect(cell * i, y, cell - 1, ROW - 1);
        // Without colour, too: what lowers is struck through.
        if (value < 0) pen.clearRect(cell * i, y + ROW / 2 - 1.5, cell - 1, 1.5);
      }
    });
    const cellAt = (event) => {
      const area = canvas.getBoundingClientRect();
      const i = first + Math.floor((event.clientX - area.left) / cell);
      const group = count - 1 - Math.floor((event.clientY - area.top) / ROW);
      return group in rows && i >= first && i < first + width ? [group, i, area] : null;
    };
    canvas.setAttribute("role", "img");
    const top = `strongest in ${data.groups[best[0]]} at “${inline(strings[best[1]])}”, ${signed(rows[best[0]][best[1]])}`;
    canvas.setAttribute("aria-label", `Influence by layers and tokens: ${top}`);
    canvas.addEventListener("pointermove", (event) => {
      const found = cellAt(event);
      if (!found) return hideTip();
      const [group, i, area] = found;
      const next = i + 1 < strings.length ? ["predicts", inline(strings[i + 1])] : ["end"];
      fillTip([["token", inline(strings[i])], next, ["value", signed(rows[group][i]), data.groups[group]]]);
      placeTip({ left: area.left + cell * (i - first), top: area.top + ROW * (count - 1 - group), bottom: event.clientY + ROW });
    });
    canvas.addEventListener("pointerleave", hideTip);
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
  const laid = [];
  function layOut(number) {
    laid[number] ??= fillArticle(number);
    return laid[number];
  }
  async function fillArticle(number) {
    if (!("DecompressionStream" in window)) {
      byId("old").hidden = false;
      return;
    }
    const article = articles[number];
    article.setAttribute("aria-busy", "true");
    if (!article.childElementCount) {
      article.append((await element(`frame${number + 1}`)).content.cloneNode(true));
      settle();
    }
    const query = await read(number);
    article.removeAttribute("aria-busy");
    for (const list of article.querySelectorAll(".cards[data-sign]")) {
      const entries = query[list.dataset.sign].filter((entry) => entry.duplicate === null);
      const largest = Math.max(...entries.map((entry) => Math.abs(entry.score)), 1e-30);
      list.append(...entries.map((entry) => card(entry, list.dataset.sign, query, largest)));
    }
    await scaleOf(article);
    performance.mark("shown");
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
    countDocuments();
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

  // Downloads
  function save(name, type, content) {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    URL.revokeObjectURL(link.href);
  }
  const idOf = (source) => source.key ?? source.id;
  async function table() {
    const queries = await Promise.all(articles.map((_, number) => read(number)));
    const rows = queries.flatMap((query) => ["positive", "negative"].flatMap((sign) => query[sign].map((entry) => ({
      query: query.id, sign: sign === "positive" ? 1 : -1, rank: entry.rank, sequence: entry.n, score: entry.score,
      nats: entry.nats, tfidf_rank: entry.tfidf, spurious: entry.spurious, duplicate_of: entry.duplicate,
      documents: entry.text.sources.map(idOf), groups: entry.groups,
    }))));
    return rows.map((row) => JSON.stringify(row) + "\n").join("");
  }
  async function documents() {
    const sign = byId("sign").value, least = Number(byId("least").value) || 0;
    const numbers = byId("scope").value === "all" ? articles.map((_, i) => i) : [open];
    const found = new Set();
    for (const query of await Promise.all(numbers.map(read))) {
      for (const entry of query[sign]) {
        if (Math.abs(entry.score) < least) continue;
        const sources = entry.text.sources, whole = entry.w && weights(entry, data.shadings[0], null);
        for (const source of sources) {
          const part = whole ? whole.slice(...source.units).reduce((sum, value) => sum + value, 0) : entry.score;
          if (sources.length === 1 || part * entry.score > 0) found.add(idOf(source));
        }
      }
    }
    return [...found];
  }
  async function countDocuments() {
    const count = (await documents()).length;
    byId("counted").textContent = `${count.toLocaleString("en")} document${count === 1 ? "" : "s"}`;
  }
  byId("documents").addEventListener("input", countDocuments);
  byId("documents").addEventListener("submit", async (event) => {
    event.preventDefault();
    save("documents.txt", "text/plain", (await documents()).map((id) => (/[\r\n]/.test(id) ? JSON.stringify(id) : id) + "\n").join(""));
  });

  // What is chosen for one query is chosen for all, and for those that are not laid out yet.
  function settle() {
    for (const columns of document.querySelectorAll(".columns")) {
      if (only === "both") delete columns.dataset.only;
      else columns.dataset.only = only;
    }
    press("show", only);
    press("shade", shading);
    for (const part of document.querySelectorAll("[data-for]")) part.hidden = part.dataset.for !== shading;
    for (const choice of document.querySelectorAll("[data-layer]")) {
      // Only token influence is known by layer.
      choice.disabled = shading !== data.shadings[0];
      choice.value = layer === null ? "" : String(layer);
    }
    document.body.classList.toggle("no-spurious", hiding);
    for (const box of document.querySelectorAll("[data-hide]")) box.checked = hiding;
  }
  function press(choice, value) {
    for (const button of document.querySelectorAll(`.switch button[data-${choice}]`)) {
      button.setAttribute("aria-pressed", String(button.dataset[choice] === value));
    }
  }
  function shadeAgain() {
    mark(null);
    settle();
    for (const box of document.querySelectorAll(".tokens")) fill(box, box.classList.contains("all"));
    articles.filter((article) => article.querySelector(".card")).forEach(scaleOf);
  }
  async function scaleOf(article) {
    const query = await read(Number(article.dataset.query));
    for (const scale of article.querySelectorAll(".full")) {
      scale.textContent = signed(strongestIn({ query }, data.shadings[0])).replace("+", "");
    }
  }

  // Tokens
  function tell(unit) {
    const box = unit.closest(".tokens");
    if (!box) return null;
    const i = Number(unit.dataset.i), text = box.entry.text;
    const strings = units(box.entry), values = weights(box.entry);
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
    placeTip(unit.getClientRects()[0] || unit.getBoundingClientRect());
    if (aloud) say.textContent = tip.innerText;
  }
  function placeTip(at) {
    tip.hidden = false;
    const width = tip.offsetWidth, height = tip.offsetHeight;
    const left = Math.max(6, Math.min(at.left, document.documentElement.clientWidth - width - 6));
    const above = at.top - height - 7;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < 4 ? at.bottom + 7 : above}px`;
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
  function strongestUnit(box) {
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
    if (at < 0 && event.key.startsWith("Arrow")) return mark(strongestUnit(box));
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
    const wanted = event.target.closest("[data-save]")?.dataset.save;
    if (wanted === "jsonl") table().then((lines) => save("sequences.jsonl", "application/jsonl", lines));
    if (wanted === "parquet") element("parquet").then(() => save("sequences.parquet", "application/vnd.apache.parquet", bytesOf("parquet")));
    const button = event.target.closest(".switch button");
    if (button?.dataset.show) {
      only = button.dataset.show;
      settle();
    }
    if (button?.dataset.shade) {
      shading = button.dataset.shade;
      shadeAgain();
    }
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
    const chosen = event.target;
    if (chosen.dataset?.layer !== undefined) {
      layer = chosen.value === "" ? null : Number(chosen.value);
      shadeAgain();
    }
    if (chosen.dataset?.hide !== undefined) {
      hiding = chosen.checked;
      settle();
    }
  });
  window.addEventListener("hashchange", () => fromAddress(true));
  document.querySelector("#list").addEventListener("click", (event) => {
    if (narrow.matches && event.target.closest("a")) queries.open = false;
  });
  fromAddress(false);
})();
