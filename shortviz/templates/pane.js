// What ui/parts/pointer.py lays over a map; see there.

const panes = new WeakMap();
const HOLD_MS = 4000;  // an outline that was chosen here is not moved back by a page that has not heard of it yet

function open(box) {
  const make = (name, parent) => parent.appendChild(Object.assign(document.createElement("div"), { className: name }));
  const pane = make("shortviz-pane", box);
  pane.tabIndex = 0;
  pane.setAttribute("role", "application");
  const one = { pane, over: make("shortviz-over", pane), chosen: make("shortviz-chosen", pane), at: null, until: 0 };
  one.says = make("shortviz-says", pane);
  one.says.setAttribute("aria-live", "polite");
  one.over.hidden = one.says.hidden = true;
  const fits = ([start, n]) => start >= 0 && n >= 1 && start + n <= one.layers;
  const put = (mark, cell) => {
    mark.hidden = !cell || !fits(cell);
    if (mark.hidden) return;
    const part = (value) => `${(100 * value) / one.layers}%`;
    Object.assign(mark.style, { left: part(cell[0]), top: part(cell[1] - 1), width: part(1), height: part(1) });
    [mark.dataset.start, mark.dataset.n] = cell;
  };
  const words = (cell) => {
    const hits = box.querySelector(".js-plotly-plot")?.data?.at(-1);
    const row = hits?.customdata?.find((each) => each[0] === cell[0] && each[1] === cell[1]);
    const filled = row && hits.hovertemplate.replace("<extra></extra>", "")
      .replace(/%\{customdata\[(\d+)\]\}/g, (_, index) => row[index]);
    return filled ? filled.split("<br>").filter(Boolean) : [];
  };
  const say = (cell) => {
    const lines = cell && fits(cell) ? words(cell) : [];
    one.says.hidden = !lines.length;
    const plain = (line) => new DOMParser().parseFromString(line, "text/html").body.textContent;
    const part = (line) => Object.assign(document.createElement("p"), { textContent: plain(line) });
    one.says.replaceChildren(...lines.map(part));
  };
  const cellAt = (event) => {
    const place = pane.getBoundingClientRect();
    const inside = (value, low, size) => Math.floor(((value - low) / size) * one.layers);
    return [inside(event.clientX, place.left, place.width), 1 + inside(event.clientY, place.top, place.height)];
  };
  const choose = (cell, wait) => {
    one.at = cell;
    one.until = Date.now() + HOLD_MS;
    put(one.chosen, cell);
    clearTimeout(one.timer);
    one.timer = setTimeout(() => one.send(cell), wait);
  };
  pane.onpointermove = (event) => {
    const cell = cellAt(event);
    put(one.over, cell);
    say(cell);
  };
  pane.onpointerleave = () => { one.over.hidden = one.says.hidden = true; };
  pane.onclick = (event) => {
    const cell = cellAt(event);
    if (fits(cell)) { say(cell); choose(cell, 0); }
  };
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  pane.onkeydown = (event) => {
    const step = steps[event.key];
    if (!step || !one.at) return;
    event.preventDefault();
    const cell = [one.at[0] + step[0], one.at[1] + step[1]];
    if (fits(cell)) { say(cell); choose(cell, 250); }
  };
  pane.onfocus = () => say(one.at);
  pane.onblur = () => { one.says.hidden = true; };
  one.place = () => {
    const plot = box.querySelector(".js-plotly-plot");
    const size = plot?._fullLayout?._size;
    if (!size || Math.abs(plot._fullLayout.height - box.clientHeight) > 2) return;  // not drawn in its size yet
    const above = Math.round(box.getBoundingClientRect().top + (box.closest(".stMain")?.scrollTop ?? 0));
    if (above !== one.above) box.style.setProperty("--above", `${(one.above = above)}px`);
    const from = box.getBoundingClientRect(), to = plot.getBoundingClientRect();
    const [left, top, width, height] = [to.left - from.left + size.l, to.top - from.top + size.t, size.w, size.h];
    Object.assign(pane.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
    plot.querySelector(".svg-container")?.setAttribute("aria-hidden", "true");
  };
  one.put = put;
  one.clock = setInterval(one.place, 200);  // the chart is replaced and resized without telling anybody
  return one;
}

export default function ({ data, parentElement, setTriggerValue }) {
  const box = parentElement.closest(`.st-key-${data.box}`);
  if (!box) return;
  if (!panes.has(box)) panes.set(box, open(box));
  const one = panes.get(box);
  one.layers = data.layers;
  one.send = (cell) => setTriggerValue("cell", cell);
  one.pane.setAttribute("aria-label", data.label);
  const said = data.chosen;
  const heard = one.at && said && said[0] === one.at[0] && said[1] === one.at[1];
  if (heard || Date.now() > one.until) {
    one.at = said;
    one.until = 0;
    one.put(one.chosen, said);
  }
  one.place();
  return () => { clearInterval(one.clock); one.pane.remove(); panes.delete(box); };
}
