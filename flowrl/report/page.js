// The values under the pointer, or under the arrow keys. Without this script the charts say the same, less exactly.
function text(value, digits = 4) {
  if (value === null || value === undefined) return "not finite";
  const small = value !== 0 && Math.abs(value) < 1e-3;
  return (small ? value.toExponential(digits - 2) : String(Number(value.toPrecision(digits)))).replace(/-/g, "\u2212");
}

function nearest(xs, at) {
  let best = 0;
  for (let i = 1; i < xs.length; i++) if (Math.abs(xs[i] - at) < Math.abs(xs[best] - at)) best = i;
  return best;
}

function line(tip, curve, i, same) {
  const row = document.createElement("div"), swatch = document.createElement("i"), value = document.createElement("b");
  swatch.className = "swatch c" + curve.colour;
  value.textContent = text(curve.y[i]) + (curve.e && curve.e[i] != null ? " ± " + text(curve.e[i], 2) : "");
  row.append(swatch, curve.label + " ", value);
  const more = [];
  if (curve.s && curve.s[i] !== null) more.push("smoothed " + text(curve.s[i]));
  if (!same) more.push("at " + curve.x[i]);
  if (more.length) row.append(" (" + more.join(", ") + ")");
  tip.append(row);
}

for (const chart of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(chart.querySelector("script").textContent);
  const plot = chart.querySelector(".plot"), box = chart.querySelector(".box");
  const cursor = chart.querySelector(".cursor"), tip = chart.querySelector(".tip");
  const steps = [...new Set(data.curves.flatMap((curve) => curve.x))].sort((a, b) => a - b);
  let index = steps.length - 1;

  function show(i) {
    index = Math.max(0, Math.min(steps.length - 1, i));
    const at = steps[index], share = at / data.last;
    const head = document.createElement("div");
    const counted = (data.before ?? "iteration ") + (data.before === undefined ? at : text(at)) + (data.after ?? "");
    head.textContent = data.places ? data.places[at] : counted;
    tip.replaceChildren(head);
    for (const curve of data.curves) {
      const i = nearest(curve.x, at);
      line(tip, curve, i, curve.x[i] === at);
    }
    cursor.style.left = share * 100 + "%";
    cursor.hidden = tip.hidden = false;
    const room = box.clientWidth, wide = tip.offsetWidth;
    tip.style.left = Math.max(-box.offsetLeft, Math.min(room - wide, share * room - wide / 2)) + "px";
  }
  function hide() { cursor.hidden = tip.hidden = true; }

  box.addEventListener("pointermove", (event) => {
    const frame = box.getBoundingClientRect();
    show(nearest(steps, (event.clientX - frame.left) / frame.width * data.last));
  });
  box.addEventListener("pointerleave", hide);
  plot.addEventListener("focus", () => { if (plot.matches(":focus-visible")) show(index); });
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 }[event.key];
    if (by) { show(index + by); event.preventDefault(); }
    if (event.key === "Escape") hide();
  });
}
