"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const color = name => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const pixels = value => Math.round(value * devicePixelRatio);
  const FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Noto Sans, sans-serif";

  const compact = new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 3});
  const exact = new Intl.NumberFormat("en", {maximumSignificantDigits: 4});
  const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
  const units = {
    count: value => Math.abs(value) < 10000 ? exact.format(value) : compact.format(value),
    usd: value => "$" + exact.format(value),
  };
  units.whole = units.count;
  const WHOLE = [1, 2, 5].flatMap(digit => [...Array(13).keys()].map(power => digit * 10 ** power)).sort((a, b) => a - b);
  const legendValue = (unit, value) =>
    value == null ? "" : unit === "usd" ? "$" + exact.format(value) : value >= 1000 ? whole.format(value) : exact.format(value);

  const MINUTE = 60, HOUR = 3600, DAY = 86400;
  const STEPS = [.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 15, 30, MINUTE, 2 * MINUTE, 5 * MINUTE,
    10 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY];
  const elapsed = (value, step) =>
    step >= DAY ? exact.format(value / DAY) + " d" :
    step >= HOUR ? exact.format(value / HOUR) + " h" :
    step >= MINUTE ? (value < HOUR || value % HOUR === 0 && step < HOUR
      ? (value >= HOUR ? value / HOUR + " h" : value / MINUTE + " min")
      : Math.floor(value / HOUR) + ":" + String(Math.round(value % HOUR / MINUTE)).padStart(2, "0") + " h") :
    exact.format(value) + " s";

  const steps = uPlot.paths.stepped({align: 1});

  const curve = (given, chart) => {
    const ink = () => color(given.color);
    const filled = given.style === "steps";
    return {
      label: given.label,
      scale: given.axis,
      width: given.style === "steps" ? 1.25 : given.style === "limit" ? 1.5 : 2,
      dash: given.style === "limit" ? [6, 4] : undefined,
      stroke: ink,
      fill: filled ? () => ink() + "38" : undefined,
      paths: given.style === "slope" ? undefined : steps,
      points: {show: false},
      value: (plot, value) => legendValue(given.axis === "left" ? chart.left_unit : "count", value),
    };
  };

  const vertical = (chart, side, label, unit) => ({
    scale: side,
    side: side === "left" ? 3 : 1,
    stroke: () => color("soft"),
    font: "12px " + FONT,
    size: (plot, values) => Math.max(34, 14 + 7 * Math.max(0, ...(values || []).map(text => text ? text.length : 0))),
    gap: 6,
    space: 38,
    ...(unit === "whole" ? {incrs: WHOLE} : {}),
    grid: {show: side === "left", stroke: () => color("line"), width: 1},
    ticks: {show: false},
    values: (plot, splits) => splits.map(value => value == null ? "" : units[unit](value)),
  });

  const horizontal = chart => ({
    stroke: () => color("soft"),
    font: "12px " + FONT,
    size: 30,
    gap: 6,
    space: chart.x_kind === "bins" ? 58 : 64,
    incrs: chart.x_kind === "bins" ? [1, 2, 4, 5, 8, 10, 20] : STEPS,
    grid: {show: false},
    ticks: {stroke: () => color("line"), width: 1, size: 5},
    values: (plot, splits, axis, space, step) =>
      splits.map(value => chart.x_kind === "bins" ? chart.ticks[value] ?? "" : elapsed(value, step)),
  });

  // What each vertical axis counts, set in one line above the plot; and the markers across it.
  const writing = chart => plot => {
    const {ctx, bbox: {left, top, width, height}} = plot;
    ctx.save();
    ctx.font = `${pixels(12)}px ${FONT}`;
    ctx.fillStyle = color("soft");
    ctx.textBaseline = "bottom";
    ctx.textAlign = "left";
    ctx.fillText(chart.left, pixels(2), top - pixels(8));
    if (chart.right) {
      ctx.textAlign = "right";
      ctx.fillText(chart.right, plot.ctx.canvas.width - pixels(2), top - pixels(8));
    }
    const taken = [];
    ctx.textBaseline = "top";
    for (const marker of chart.markers) {
      const x = Math.floor(plot.valToPos(marker.x, "x", true)) + .5;
      if (x < left - 1 || x > left + width + 1) continue;
      ctx.strokeStyle = color("grey");
      ctx.lineWidth = pixels(1);
      ctx.setLineDash([pixels(3), pixels(3)]);
      ctx.beginPath();
      ctx.moveTo(x, top);
      ctx.lineTo(x, top + height);
      ctx.stroke();
      const wide = ctx.measureText(marker.label).width;
      const flip = x + wide + pixels(8) > left + width;
      const from = flip ? x - wide - pixels(5) : x + pixels(5);
      let row = 0;
      while (taken.some(other => other.row === row && from < other.to + pixels(6) && from + wide + pixels(6) > other.from)) row++;
      if (row > 5) continue;
      taken.push({row, from, to: from + wide});
      const y = top + pixels(3) + row * pixels(17);
      ctx.fillStyle = color("page");
      ctx.globalAlpha = .8;
      ctx.fillRect(from - pixels(2), y - pixels(1), wide + pixels(4), pixels(15));
      ctx.globalAlpha = 1;
      ctx.fillStyle = color("ink");
      ctx.textAlign = "left";
      ctx.fillText(marker.label, from, y);
    }
    ctx.restore();
  };

  const upTo = chart => (plot, low, high) => [0, high > 0 ? high * (chart.markers.length ? 1.18 : 1.08) : 1];

  const draw = chart => {
    const place = document.getElementById("plot-" + chart.key);
    const last = chart.x.length - 1;
    const bins = chart.x_kind === "bins";
    const plot = new uPlot({
      width: place.clientWidth,
      height: Math.round(Math.min(300, Math.max(220, place.clientWidth * .42))),
      padding: [28, chart.right ? 0 : bins ? 26 : 14, 0, 0],
      scales: {
        x: {time: false, range: (plot, low, high) => low === high ? [low, low + 1] : [low, high]},
        left: {range: upTo(chart)},
        right: {range: upTo(chart)},
      },
      series: [
        {label: bins ? "latency" : "after", value: (plot, value, series, at) => value == null ? "" : bins
          ? (at < last ? chart.ticks[at] + " to " + chart.ticks[at + 1] : "") : elapsed(Math.round(value), value >= 60 ? MINUTE : 1)},
        ...chart.curves.map(given => curve(given, chart)),
      ],
      axes: [
        horizontal(chart),
        vertical(chart, "left", chart.left, chart.left_unit),
        ...(chart.right ? [vertical(chart, "right", chart.right, "whole")] : []),
      ],
      cursor: {
        sync: bins ? undefined : {key: "time", setSeries: false},
        y: false,
        points: {size: 7},
        drag: {x: true, y: false},
      },
      legend: {live: true, markers: {width: 0, fill: (plot, at) => color(chart.curves[at - 1].color)}},
      hooks: {
        draw: [writing(chart)],
        setLegend: [plot => place.classList.toggle("idle", plot.legend.idx == null)],
      },
    }, [chart.x, ...chart.curves.map(given => given.values)], place);
    new ResizeObserver(() => {
      if (place.clientWidth && place.clientWidth !== plot.width)
        plot.setSize({width: place.clientWidth, height: plot.height});
    }).observe(place);
    place.classList.add("idle");
    return plot;
  };

  let plots = [];
  const drawAll = () => {
    plots.forEach(plot => plot.destroy());
    plots = charts.map(draw);
  };
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { root.dataset.print = ""; drawAll(); });
  addEventListener("afterprint", () => { delete root.dataset.print; drawAll(); });
})();
