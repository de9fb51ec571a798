"use strict";
// Draw every plot of the page in the colors of the reader's scheme, and again when the scheme changes.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  const themed = (layout) => {
    const [ink, muted, line, paper] = ["ink", "muted", "line", "paper"].map(color);
    const axis = (options) => ({ gridcolor: line, zerolinecolor: muted, linecolor: muted, automargin: true, ...options });
    return {
      ...layout,
      font: { family: "system-ui, sans-serif", size: 13, color: ink },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      colorway: [1, 2, 3, 4, 5, 6, 7].map((n) => color(`line-${n}`)),
      hoverlabel: { bgcolor: paper, bordercolor: muted, font: { color: ink } },
      dragmode: touch ? false : "zoom", // a finger that moves over a plot scrolls the page
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
      shapes: (layout.shapes || []).map((shape) => ({ ...shape, line: { ...shape.line, color: muted } })),
    };
  };

  const plots = [...document.querySelectorAll("[data-plot]")].map((node) => ({
    node,
    spec: JSON.parse(document.getElementById(node.dataset.plot).textContent),
  }));
  const draw = () => plots.forEach(({ node, spec }) =>
    Plotly.react(node, spec.traces, themed(spec.layout), { responsive: true, displayModeBar: false }));
  draw();
  dark.addEventListener("change", draw);
})();
