// A term of a formula and the line of the figure that shows it light each other up. Both are Streamlit's own elements,
// made anew at every run of the page: they are found by their colours when the pointer comes to one of them.
const ended = new WeakMap();  // what ends the listening of a mount before it is made anew

export default function ({ data, parentElement }) {
  ended.get(parentElement)?.();
  const probe = document.createElement("i");
  const pairs = data.pairs.map(([text, line]) => { probe.style.color = text; return { text: probe.style.color, line }; });
  const glyphs = () => document.querySelectorAll(".katex-html [style*='color']");  // KaTeX colours each by itself
  const ofGlyph = (glyph) => pairs.find((pair) => pair.text === glyph?.style.color);
  const ofTrace = (trace) => pairs.find((pair) => [trace.line?.color, trace.marker?.color].includes(pair.line));

  function light(pair) {
    for (const glyph of glyphs()) glyph.style.opacity = !pair || ofGlyph(glyph) === pair ? "" : "0.3";
    for (const line of document.querySelectorAll(".js-plotly-plot .scatterlayer .trace")) {
      line.style.opacity = !pair || ofTrace(line.__data__[0].trace) === pair ? 1 : 0.2;  // Plotly's own is 1
    }
  }

  const figures = new Set();
  const on = ({ points }) => light(ofTrace(points[0].fullData)), off = () => light();

  function over({ target }) {
    const figure = target.closest?.(".js-plotly-plot"), glyph = target.closest?.(".katex-html [style*='color']");
    if (!figure) light(ofGlyph(glyph));
    else if (!figures.has(figure)) {
      figures.add(figure);
      figure.on("plotly_hover", on);
      figure.on("plotly_unhover", off);
    }
  }

  document.addEventListener("pointerover", over);
  const end = () => {
    document.removeEventListener("pointerover", over);
    for (const figure of figures) {  // one that Plotly has purged has no listeners left
      figure.removeListener?.("plotly_hover", on);
      figure.removeListener?.("plotly_unhover", off);
    }
  };
  ended.set(parentElement, end);
  return end;
}
