{
  // ---- the lab: every number was computed beforehand; this only picks and draws
  const told = document.getElementById("lab-data"), { arrays, sliders, drawings } = JSON.parse(told.textContent);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const inputs = new Map(), outputs = new Map(), at = new Map(), moved = new Map(), turned = new Set();
  const GAP = -32768, MOST = 32767, FAR = 4000, LABEL = 14, SECONDS = 8;

  // ---- arrays: 16-bit steps between their ends, unpacked when first drawn
  const unpack = (key) => {
    const array = arrays[key];
    if (!array.values) {
      const bytes = Uint8Array.from(atob(array.data), (letter) => letter.charCodeAt(0)), view = new DataView(bytes.buffer);
      array.values = new Float64Array(bytes.length / 2);
      const step = (array.high - array.low) / (2 * MOST);
      for (let place = 0; place < array.values.length; place++) {
        const steps = view.getInt16(2 * place, true);
        array.values[place] = steps === GAP ? NaN : array.low + (steps + MOST) * step;
      }
    }
    return array;
  };
  const row = (key, keys) => { // where its sliders stand
    const { values, shape } = unpack(key), length = shape[shape.length - 1];
    let place = 0;
    keys.forEach((slider, axis) => (place = place * shape[axis] + (slider ? at.get(slider) : 0)));
    return values.subarray(place * length, (place + 1) * length);
  };

  // ---- places in a drawing
  const across = ([left, right, , , low, high], x) => left + ((x - low) / (high - low)) * (right - left);
  const down = ([, , top, bottom, , , low, high], y) => bottom - ((y - low) / (high - low)) * (bottom - top);
  const short = (place) => Number(Math.min(Math.max(place, -FAR), FAR).toFixed(1));
  const points = (frame, x, y, count) => {
    const found = [];
    for (let place = 0; place < count; place++) found.push([across(frame, x[place]), down(frame, y[place])]);
    return found;
  };
  const there = ([x, y]) => Number.isFinite(x) && Number.isFinite(y);
  const trace = (found) => {
    let text = "", pen = "M";
    for (const point of found) {
      if (!there(point)) pen = "M";
      else {
        text += `${pen}${short(point[0])} ${short(point[1])}`;
        pen = "L";
      }
    }
    return text;
  };
  const dotted = (found) => found.filter(there).map(([x, y]) => `M${short(x)} ${short(y)}h0`).join("");
  const number = (value, digits = 3) => {
    if (!Number.isFinite(value)) return "–";
    const rounded = Number(value.toPrecision(digits)), size = Math.abs(rounded);
    if (!rounded) return "0";
    const raised = (power) => String(power).replace(/[-\d]/g, (sign) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)]);
    const [mantissa, power] = rounded.toExponential(digits - 1).split("e").map(Number);
    const text = size >= 1e-4 && size < 1e6 ? rounded.toLocaleString("en", { maximumSignificantDigits: digits }) : `${mantissa} × 10${raised(power)}`;
    return text.replace("-", "−");
  };

  // ---- what sliders move
  const find = (key, kind = "draw") => document.querySelector(`[data-${kind}="${CSS.escape(key)}"]`);
  const say = (key, words) => {
    const place = find(key, "said");
    if (place) place.textContent = words;
  };
  const end = (y, { frame, side }) => { // the height of a line's outermost point, where its label stands
    const place = side === "right" ? y.findLastIndex(Number.isFinite) : y.findIndex(Number.isFinite);
    return place < 0 ? frame[3] : down(frame, y[place]);
  };
  const drawers = {
    plot(key, drawing) {
      const element = find(key), { frame } = drawing, x = row(drawing.x, []);
      const lines = element.querySelectorAll(".line"), labels = [...element.querySelectorAll(".end")];
      const heights = drawing.lines.map((line) => end(row(line.y, line.sliders), drawing));
      const show = (place) => {
        const line = drawing.lines[place], y = row(line.y, line.sliders);
        lines[place].setAttribute("d", trace(points(frame, x, y, x.length)));
        heights[place] = end(y, drawing);
      };
      const spread = () => { // labels near the ends of their lines, apart from each other
        const own = drawing.lines.flatMap((line, place) => (line.label ? [place] : [])), placed = {};
        const order = own.toSorted((a, b) => Math.round(heights[a]) - Math.round(heights[b]));
        let last = frame[2] - LABEL;
        for (const place of order) placed[place] = last = Math.max(Math.min(heights[place], frame[3]), last + LABEL);
        last = frame[3] + LABEL;
        for (const place of order.reverse()) placed[place] = last = Math.min(placed[place], last - LABEL);
        own.forEach((place, nth) => labels[nth].setAttribute("y", short(placed[place]) + 4));
      };
      const hand = element.querySelector(".hand");
      return {
        keys: [...drawing.lines.flatMap((line) => line.sliders), drawing.hand],
        draw(turned) {
          const stale = drawing.lines.map((line) => !turned || line.sliders.some((slider) => turned.has(slider)));
          stale.forEach((is, place) => is && show(place));
          if (stale.includes(true)) spread();
          if (hand) ["x1", "x2"].forEach((end) => hand.setAttribute(end, short(across(frame, x[at.get(drawing.hand)]))));
        },
      };
    },
    readings(key, drawing) {
      const rows = [...find(key).tBodies[0].rows];
      return {
        keys: [drawing.hand, ...drawing.value.flatMap((line) => line.sliders)],
        draw() {
          rows.forEach((line, place) => {
            const [value, pull] = ["value", "gradient"].map((part) => {
              const own = drawing[part][place];
              return row(own.y, own.sliders)[at.get(drawing.hand)];
            });
            line.querySelector(".value").textContent = number(value);
            line.querySelector(".gradient").textContent = number(pull);
            line.querySelector(".pull").style.setProperty("--share", Number.isFinite(pull) ? Math.min(1, Math.abs(pull) / drawing.largest) : 0);
          });
        },
      };
    },
    trail(key, drawing) {
      const element = find(key), [way, dots, head] = element.children;
      return {
        keys: [...drawing.sliders, drawing.until],
        draw() {
          const until = at.get(drawing.until), step = drawing.steps ? drawing.steps[until] : until;
          const x = row(drawing.x, drawing.sliders), y = row(drawing.y, drawing.sliders);
          const found = points(drawing.frame, x, y, Math.min(step + 1, x.length)), last = found.findLast(there);
          way.setAttribute("d", trace(found));
          dots.setAttribute("d", dotted(found));
          head.setAttribute("visibility", last ? "visible" : "hidden");
          if (last) ["cx", "cy"].forEach((name, axis) => head.setAttribute(name, short(last[axis])));
          if (drawing.said) say(key, height(row(drawing.said.heights, drawing.sliders), step, drawing.said));
        },
      };
    },
    moved(key, drawing) {
      const groups = [...find(key).children];
      return {
        keys: [drawing.hand],
        draw() {
          const place = at.get(drawing.hand);
          drawing.after[place].forEach(([x, y], nth) => {
            const went = groups[nth].querySelector(".went");
            went.setAttribute("x2", x);
            went.setAttribute("y2", y);
            groups[nth].querySelector(".after").setAttribute("transform", `translate(${x} ${y})`);
          });
          say(key, drawing.said[place]);
        },
      };
    },
    checkpoint(key, drawing) {
      const ring = find(key);
      return {
        keys: [drawing.hand],
        draw() {
          const place = at.get(drawing.hand);
          ["cx", "cy"].forEach((name, axis) => ring.setAttribute(name, drawing.places[place][axis]));
          say(key, `Epoch ${sliders[drawing.hand][place]}: ${drawing.said[place]}.`);
        },
      };
    },
  };
  const height = (heights, step, { log, floor }) => {
    const last = heights.findLastIndex(Number.isFinite);
    if (last < 0) return "nowhere";
    if (step > last) return `left the map at step ${last}`;
    if (log && heights[step] <= floor) return "at the bottom";
    return `height ${number(log ? 10 ** heights[step] : heights[step])}`;
  };

  // ---- sliders: one place for each key, wherever it is turned
  const turn = (key, place) => {
    at.set(key, place);
    for (const input of inputs.get(key)) {
      input.value = place;
      input.ariaValueText = sliders[key][place];
    }
    for (const output of outputs.get(key)) output.textContent = sliders[key][place];
    if (!turned.size) requestAnimationFrame(redraw);
    turned.add(key);
  };
  const redraw = () => {
    const keys = new Set(turned);
    turned.clear();
    for (const one of new Set([...keys].flatMap((key) => moved.get(key)))) one.draw(keys);
  };
  for (const key of Object.keys(sliders)) {
    inputs.set(key, [...document.querySelectorAll(`input[data-slider="${CSS.escape(key)}"]`)]);
    outputs.set(key, [...document.querySelectorAll(`[data-value-of="${CSS.escape(key)}"]`)]);
    moved.set(key, []);
    at.set(key, Number(inputs.get(key)[0].defaultValue));
    for (const input of inputs.get(key)) {
      input.value = input.defaultValue; // or a reloaded page shows one place and says another
      input.hidden = false;
      input.addEventListener("input", () => turn(key, Number(input.value)));
    }
  }
  for (const [key, drawing] of Object.entries(drawings)) {
    const drawer = drawers[drawing.kind](key, drawing);
    for (const slider of new Set(drawer.keys.filter(Boolean))) moved.get(slider).push(drawer);
    if (drawing.kind === "checkpoint") drawer.draw(); // its words stand in the table where no script runs
  }
  document.querySelectorAll(".with-script").forEach((words) => (words.hidden = false));

  // ---- playing: never by itself, in a few jumps where motion is not wanted
  const stops = new Map();
  for (const button of document.querySelectorAll("button[data-play]")) {
    const key = button.dataset.play, last = sliders[key].length - 1;
    let timer = 0;
    const stop = () => {
      cancelAnimationFrame(timer);
      clearTimeout(timer);
      timer = 0;
      button.textContent = "Play";
    };
    const play = () => {
      const from = at.get(key) >= last ? 0 : at.get(key), began = performance.now();
      const jump = still.matches ? Math.ceil(last / 8) : 1;
      button.textContent = "Pause";
      const next = () => {
        const gone = ((performance.now() - began) / (1000 * SECONDS)) * last, place = Math.min(last, from + Math.floor(gone / jump) * jump);
        if (place !== at.get(key)) turn(key, place);
        if (place >= last) return stop();
        timer = still.matches ? setTimeout(next, 200) : requestAnimationFrame(next);
      };
      turn(key, from);
      next();
    };
    button.hidden = false;
    button.addEventListener("click", () => (timer ? stop() : play()));
    inputs.get(key).forEach((input) => input.addEventListener("pointerdown", stop));
    stops.set(button, stop);
  }

  // ---- one surface at a time
  const tabs = document.querySelector(".tabs");
  if (tabs) {
    const grounds = [...document.querySelectorAll("[data-ground]")], radios = [...tabs.querySelectorAll("input")];
    const choose = () => {
      stops.forEach((stop) => stop());
      grounds.forEach((ground, place) => (ground.hidden = !radios[place].checked));
    };
    tabs.hidden = false;
    tabs.addEventListener("change", choose);
    choose();
  }
}
