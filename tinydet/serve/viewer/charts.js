// Two small histograms, as SVG.

const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Draw bars into an element. `isOn(i)`: whether a bar counts; `ticks`: [[position in bars, text]]. */
export function drawBars(element, values, isOn, ticks = []) {
  const width = element.clientWidth || 300, height = element.clientHeight || 46, floor = ticks.length ? 15 : 1;
  const most = Math.max(1, ...values), step = width / values.length, room = height - floor - 2;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  values.forEach((value, i) => {
    if (!value) return;
    const tall = Math.max(1.5, Math.sqrt(value / most) * room); // roots, so that rare values can be seen
    const gap = step > 6 ? 1.5 : step > 2.5 ? 0.7 : 0;
    svg.append(make("rect", { x: i * step + gap / 2, y: height - floor - tall, width: Math.max(step - gap, 0.5), height: tall, rx: Math.min(1.5, step / 4),
      class: isOn(i) ? "on" : "off" }));
  });
  svg.append(make("line", { x1: 0, x2: width, y1: height - floor + .5, y2: height - floor + .5 }));
  for (const [at, text] of ticks) {
    const x = at * step;
    svg.append(make("text", { x, y: height - 2, "text-anchor": x < 12 ? "start" : x > width - 12 ? "end" : "middle" }, text));
  }
  element.replaceChildren(svg);
}
