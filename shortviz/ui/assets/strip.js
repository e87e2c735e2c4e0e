// A passage whose tokens are shaded. All words were made in Python and go in as text; pointing at a token, tapping it or
// walking there by the arrow keys only looks its words up. What was looked at outlives a new run of the page.
const states = new WeakMap();

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".strip"), find = (name) => root.querySelector(name);
  const key = JSON.stringify(data), old = states.get(parentElement);
  if (old?.key === key && old.root === root) return;
  const state = { key, root, at: old?.name === data.name ? old.at : data.first, name: data.name };
  states.set(parentElement, state);
  const make = (kind, text, name = "") => Object.assign(document.createElement(kind), { textContent: text, className: name });

  find(".low").textContent = data.scale[0];
  find(".high").textContent = data.scale[1];
  find(".scale i").style.background = data.bar;
  const passage = find(".passage"), had = passage.contains(root.getRootNode().activeElement);
  passage.setAttribute("aria-label", data.name);
  const tokens = data.tokens.map((token) => {
    const span = make("span", token.text.trimStart() || token.text, token.apart ? "apart" : "");
    Object.assign(span.style, token.shade ? { background: token.shade, color: token.ink } : {});
    span.setAttribute("role", "option");
    span.setAttribute("aria-label", token.said);
    return span;
  });
  // The space before a word is not shaded: at the end of a line it would be a sliver of the next one's colour.
  passage.replaceChildren(...tokens.flatMap((span, i) => {
    const whole = data.tokens[i].text, space = whole.length - span.textContent.length;
    return space ? [whole.slice(0, space), span] : [span];
  }));

  function show(at) {
    const token = data.tokens[at];
    tokens.forEach((span, i) => { span.tabIndex = i === at ? 0 : -1; span.setAttribute("aria-selected", i === at); });
    state.at = at;
    const lines = [make("p", token.head)];
    for (const [name, likely] of token.likely) {
      const line = make("p", "");
      line.append(make("b", name), ...likely.map(([text, share, right]) => {
        const part = make("span", "");
        part.append(make("code", text, right ? "right" : ""), ` ${share}`);
        return part;
      }));
      lines.push(line);
    }
    find(".says").replaceChildren(...lines);
  }

  function beside(at, down) {
    const from = tokens[at].getBoundingClientRect(), x = from.left + from.width / 2;
    const rows = tokens.map((span, i) => [i, span.getBoundingClientRect()])
      .filter(([, box]) => (down ? box.top > from.top + 4 : box.top < from.top - 4));
    if (!rows.length) return at;
    const tops = rows.map(([, box]) => box.top), row = down ? Math.min(...tops) : Math.max(...tops);
    const near = rows.filter(([, box]) => Math.abs(box.top - row) < 4);
    return near.reduce((best, one) => (Math.abs(one[1].left + one[1].width / 2 - x) < Math.abs(best[1].left + best[1].width / 2 - x) ? one : best))[0];
  }

  const index = (event) => tokens.indexOf(event.target.closest("[role=option]"));
  tokens.forEach((span, i) => { span.onfocus = () => show(i); });
  // Of a mouse that lies still the browser tells when the page scrolls below it: that is nobody's wish.
  passage.onpointermove = (event) => {
    if ((event.movementX || event.movementY) && index(event) >= 0) show(index(event));
  };
  passage.onclick = (event) => { if (index(event) >= 0) tokens[index(event)].focus(); };
  passage.onkeydown = (event) => {
    const to = { ArrowRight: state.at + 1, ArrowLeft: state.at - 1, Home: 0, End: tokens.length - 1,
      ArrowDown: () => beside(state.at, true), ArrowUp: () => beside(state.at, false) }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    tokens[Math.min(Math.max(typeof to === "function" ? to() : to, 0), tokens.length - 1)].focus();
  };
  show(Math.min(state.at, tokens.length - 1));
  if (had) tokens[state.at].focus();
}
