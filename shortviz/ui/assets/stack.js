// A stack of layers with a bracket over those that are removed. Everything it says was made in Python: a drag only looks
// it up, so it needs no model and no round trip. What was chosen outlives a new run of the page.
const chosen = new WeakMap();

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".stack");
  const find = (name) => root.querySelector(name);
  const layers = data.layers, most = data.texts.length;
  const at = chosen.get(parentElement) ?? { start: data.start, n: data.n, prompt: 0 };
  chosen.set(parentElement, at);

  find(".bars").replaceChildren(...Array.from({ length: layers }, (_, i) => {
    const layer = layers - 1 - i, bar = document.createElement("div"), name = document.createElement("b");
    bar.className = "bar";
    name.textContent = layer % 5 === 0 || layer === layers - 1 ? layer : "";
    bar.append(name, document.createElement("i"));
    return bar;
  }));
  const group = `prompt-${Math.random().toString(36).slice(2)}`;
  find(".prompts").replaceChildren(...data.prompts.map((text, i) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "radio", name: group, checked: i === at.prompt });
    input.onchange = () => { at.prompt = i; show(); };
    label.append(input, text);
    return label;
  }));
  find(".whole").textContent = `${layers} layers`;

  const between = (value, low, high) => Math.min(Math.max(value, low), high);
  function choose(start, n) {
    at.n = between(n, 1, most);
    at.start = between(start, 0, layers - at.n);
    show();
  }

  function say(place, parts) {
    place.replaceChildren(...parts.map(([text, differs]) => {
      const part = document.createElement(differs ? "mark" : "span");
      part.textContent = text;
      return part;
    }));
  }

  function show() {
    const { start, n, prompt } = at, last = start + n - 1;
    const name = n === 1 ? `layer ${start}` : `layers ${start}-${last}`;
    const bars = root.querySelectorAll(".bar"), height = bars[0].getBoundingClientRect().height;
    bars.forEach((bar, i) => bar.classList.toggle("gone", layers - 1 - i >= start && layers - 1 - i <= last));
    const top = (layers - 1 - last) * height, bottom = (layers - start) * height;
    Object.assign(find(".bracket").style, { top: `${top - 2}px`, height: `${bottom - top + 4}px` });
    find(".end.top").style.top = `${top - 9}px`;
    find(".end.bottom").style.top = `${bottom - 7}px`;
    find(".bracket").dataset.says = `${name} removed`;
    find(".left").textContent = `${layers - n} layers`;
    find(".uncut").textContent = data.uncut[prompt];
    say(find(".cut"), data.texts[n - 1][start][prompt]);
    const [factor, rest] = data.prices[n - 1][start], strong = document.createElement("strong");
    strong.textContent = factor;
    find(".price").replaceChildren(strong, ` ${rest}`);
    find(".open").textContent = `See ${name} on the map`;
    const values = [[".bracket", start, 0, layers - n], [".end.top", n, 1, most]];
    for (const [which, now, low, high] of values) {
      const slider = find(which);
      slider.setAttribute("aria-valuemin", low);
      slider.setAttribute("aria-valuemax", high);
      slider.setAttribute("aria-valuenow", now);
      slider.setAttribute("aria-valuetext", `${name} removed: ${factor} ${rest}`);
    }
  }

  const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 5, PageDown: -5 };
  find(".bracket").onkeydown = (event) => {
    const by = event.key === "Home" ? -layers : event.key === "End" ? layers : steps[event.key];
    if (by) { event.preventDefault(); choose(at.start + by, at.n); }
  };
  find(".end.top").onkeydown = (event) => {
    const by = event.key === "Home" ? -most : event.key === "End" ? most : steps[event.key];
    if (by) { event.preventDefault(); choose(at.start, between(at.n + by, 1, Math.min(most, layers - at.start))); }
  };

  function drag(place, move) {
    place.onpointerdown = (event) => {
      const from = { ...at, y: event.clientY }, height = root.querySelector(".bar").getBoundingClientRect().height;
      place.setPointerCapture(event.pointerId);
      place.onpointermove = (now) => move(from, Math.round((from.y - now.clientY) / height));
      place.onpointerup = place.onpointercancel = () => { place.onpointermove = null; };
    };
  }
  drag(find(".bracket"), (from, by) => choose(from.start + by, from.n));
  drag(find(".end.top"), (from, by) => choose(from.start, between(from.n + by, 1, Math.min(most, layers - from.start))));
  drag(find(".end.bottom"), (from, by) => {
    const last = from.start + from.n - 1, start = between(from.start + by, Math.max(0, last - most + 1), last);
    choose(start, last - start + 1);
  });
  find(".bars").onpointerdown = (event) => {
    const bar = event.target.closest(".bar");
    const layer = layers - 1 - [...root.querySelectorAll(".bar")].indexOf(bar);
    if (bar) choose(layer - Math.floor((at.n - 1) / 2), at.n);
  };
  find(".open").onclick = () => setTriggerValue("opened", [at.start, at.n]);
  const resized = new ResizeObserver(show);
  resized.observe(root);
  show();
  return () => resized.disconnect();
}
