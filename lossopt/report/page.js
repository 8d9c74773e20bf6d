"use strict";
// Everything below is a convenience: the page says the same without it.

// ---- tables: sorted by a click on a head, filtered by a word
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.dataset.sort) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.dataset.sort === "text" ? "ascending" : "descending";
      const order = !head.ariaSort || head.ariaSort === "none" ? first : head.ariaSort === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = order;
      const sign = order === "ascending" ? 1 : -1, numeric = head.dataset.sort === "number";
      const value = (row) => (numeric ? Number(row.cells[column].dataset.v) : row.cells[column].textContent);
      const rows = [...body.rows].map((row, place) => [value(row), place, row]);
      const compare = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b, undefined, { numeric: true });
      rows.sort((a, b) => sign * compare(a[0], b[0]) || a[1] - b[1]);
      body.append(...rows.map((row) => row[2]));
    });
  });
  if (body.rows.length < 25) continue;
  const tools = document.createElement("div"), field = document.createElement("input"), count = document.createElement("span");
  tools.className = "tools";
  field.type = "search";
  field.placeholder = "Show names with …";
  field.ariaLabel = "Show rows whose names hold this";
  count.className = "quiet";
  field.addEventListener("input", () => {
    const word = field.value.trim().toLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = !row.textContent.toLowerCase().includes(word);
      shown += !row.hidden;
    }
    count.textContent = word ? `${shown} of ${body.rows.length} rows` : "";
  });
  tools.append(field, count);
  table.closest(".scroll").before(tools);
}

// ---- the map: the image of the nearest point, its class lit in every map
const maps = document.querySelector(".maps");
if (maps) {
  const svgs = [...maps.querySelectorAll("svg")], legend = document.querySelector(".legend");
  const points = svgs.map((svg) => [...svg.querySelectorAll(".p")]);
  const places = points.map((own) => own.map((point) => [Number(point.getAttribute("cx")), Number(point.getAttribute("cy"))]));
  const kinds = points[0].map((point) => point.dataset.c);
  const told = points[0].map((point) => point.querySelector("title").textContent.split("\n"));
  points.flat().forEach((point) => point.querySelector("title")?.remove()); // or the browser shows a second tip

  const make = (parent, tag, kind) => {
    const made = document.createElement(tag);
    made.className = kind;
    parent.append(made);
    return made;
  };
  const tip = make(document.body, "div", "tip"), sheet = document.querySelector(".sprites");
  const image = make(tip, "div", "tile"), bold = make(tip, "b", ""), plain = make(tip, "span", "");
  const { tile, columns, across, down } = sheet ? sheet.dataset : {}, zoom = Math.max(1, Math.round(120 / tile)), side = tile * zoom;
  if (sheet) {
    image.style.cssText = `width:${side}px;height:${side}px;background-size:${across * zoom}px ${down * zoom}px`;
    image.style.backgroundImage = `url("${sheet.src}")`;
  } else image.remove();

  let pinned = null, current = -1;
  const light = (wanted) => svgs.forEach((svg, map) => {
    svg.classList.toggle("focused", wanted !== null);
    points[map].forEach((point, place) => point.classList.toggle("lit", wanted !== null && wanted(place)));
  });
  const unmark = () => points.forEach((own) => current >= 0 && own[current].classList.remove("here"));
  const rest = () => {
    tip.style.display = "none";
    unmark();
    current = -1;
    light(pinned);
  };
  const show = (place) => {
    unmark();
    current = place;
    points.forEach((own) => own[place].classList.add("here"));
    light((other) => kinds[other] === kinds[place]);
    [bold.textContent, plain.textContent] = told[place];
    image.style.backgroundPosition = `-${(place % columns) * side}px -${Math.floor(place / columns) * side}px`;
    tip.style.display = "block";
  };
  const nearest = (svg, map, event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let best = -1, least = 40 * 40; // units of the drawing, whose side is 1000
    places[map].forEach(([x, y], place) => {
      const distance = (x - at.x) ** 2 + (y - at.y) ** 2;
      if (distance < least) [best, least] = [place, distance];
    });
    return best;
  };
  svgs.forEach((svg, map) => {
    const follow = (event) => {
      const place = nearest(svg, map, event);
      if (place < 0) return rest();
      if (place !== current) show(place);
      const box = tip.getBoundingClientRect(), { clientX: x, clientY: y } = event;
      tip.style.left = `${Math.max(8, Math.min(x + 16, innerWidth - box.width - 8))}px`;
      tip.style.top = `${y + 16 + box.height > innerHeight ? Math.max(8, y - box.height - 12) : y + 16}px`;
    };
    svg.addEventListener("pointermove", follow);
    svg.addEventListener("pointerdown", follow);
    svg.addEventListener("pointerleave", rest);
  });
  for (const entry of legend ? legend.querySelectorAll("li[data-k]") : []) {
    const button = document.createElement("button");
    button.type = "button";
    button.ariaPressed = "false";
    button.append(...entry.childNodes);
    entry.append(button);
    button.addEventListener("click", () => {
      const on = button.ariaPressed !== "true";
      legend.querySelectorAll("button").forEach((other) => (other.ariaPressed = "false"));
      button.ariaPressed = String(on);
      pinned = on ? (place) => points[0][place].classList.contains(entry.dataset.k) : null;
      light(pinned);
    });
  }
}

// ---- the threshold: any other one, and what it would accept
const operating = document.querySelector("[data-operating]");
if (operating) {
  const points = JSON.parse(operating.dataset.operating), area = JSON.parse(operating.dataset.area);
  const svg = document.querySelector(".densities svg"), hand = document.createElementNS(svg.namespaceURI, "line");
  const label = document.createElement("label"), slider = document.createElement("input"), words = document.createElement("output");
  hand.setAttribute("class", "hand");
  hand.setAttribute("y1", operating.dataset.top);
  hand.setAttribute("y2", operating.dataset.bottom);
  slider.type = "range";
  slider.max = points.length - 1;
  slider.value = points.findIndex(([threshold]) => threshold >= Number(operating.dataset.threshold));
  const move = () => {
    const [threshold, tar, far] = points[slider.value];
    const x = area[2] + ((threshold - area[0]) / (area[1] - area[0])) * (area[3] - area[2]);
    hand.setAttribute("x1", x);
    hand.setAttribute("x2", x);
    svg.append(hand);
    words.textContent = `${threshold.toPrecision(3)} accepts ${(100 * tar).toFixed(1)} % of one class and ${far < 0.0995 ? Number((100 * far).toPrecision(2)) : (100 * far).toFixed(0)} % of the others`;
  };
  slider.addEventListener("input", move);
  label.append("Another threshold: ", slider);
  const tools = document.createElement("div");
  tools.className = "tools";
  tools.append(label, words);
  operating.append(tools);
}

// ---- the contents: where one is
const links = new Map([...document.querySelectorAll("nav.contents a")].map((link) => [link.hash.slice(1), link]));
const seen = new Set();
const watch = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) isIntersecting ? seen.add(target.id) : seen.delete(target.id);
  const first = [...links.keys()].find((id) => seen.has(id));
  if (!first) return;
  links.forEach((link, id) => (id === first ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
}, { rootMargin: "-10% 0px -50% 0px" });
links.forEach((link, id) => document.getElementById(id) && watch.observe(document.getElementById(id)));

// ---- printed pages show what is folded away
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = true)));
