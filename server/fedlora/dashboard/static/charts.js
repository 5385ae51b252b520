/* Draws the report's charts in a browser, from the values in their data-plot: values under the pointer, and zoom.

   uPlot has the axes, lines, bars and the pointer; bands, stems, dots and marks are drawn here as the report draws them.
   All that a run's folder says goes into the page as text. */
"use strict";

const fedloraCharts = (() => {
  const drawn = new Map(); // By element, what takes a chart away again.
  let rounds = null; // The rounds that all charts over rounds are zoomed to; null for all.

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function text(value, isPercentage) {
    if (value === null || value === undefined) return "–";
    if (isPercentage) return `${(100 * value).toFixed(1)} %`;
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-5) return value.toExponential(2);
    return value.toLocaleString("en", { maximumSignificantDigits: size >= 1000 ? 6 : 3 });
  }

  function ticks(values, isPercentage) {
    return values.map((value) => {
      if (value === null) return "";
      const shown = isPercentage ? 100 * value : value;
      return shown.toLocaleString("en", { maximumSignificantDigits: 6 }) + (isPercentage ? " %" : "");
    });
  }

  /* Values as they are stacked, each on those before it. */
  function stacked(panel) {
    const below = [];
    return panel.series.map((series) =>
      series.values.map((value, at) => {
        below[at] = (below[at] || 0) + (value || 0);
        return value === null ? null : below[at];
      }));
  }

  function extent(panel, rows) {
    const all = panel.limits.length ? [...panel.limits] : rows.flat().filter((value) => value !== null);
    if (!panel.limits.length) {
      for (const series of panel.series) all.push(...[...series.low, ...series.high].filter((value) => value !== null));
    }
    let low = all.reduce((a, b) => Math.min(a, b), Infinity);
    let high = all.reduce((a, b) => Math.max(a, b), -Infinity);
    if (low > high) return [0, 1];
    if (panel.fromZero) return [Math.min(0, 1.1 * low), 1.08 * Math.max(0, high) || 1];
    const pad = Math.max(0.08 * (high - low), 0.02);
    [low, high] = [low - pad, high + pad];
    if (panel.isPercentage) [low, high] = [low < 0.2 ? -0.03 : low, Math.min(1.03, high)];
    return [low, high];
  }

  function paintUnder(u, panel) {
    const { ctx } = u;
    const x = (at) => u.valToPos(u.data[0][at], "x", true);
    const y = (value) => u.valToPos(value, "y", true);
    for (const series of panel.series) {
      if (!series.high.length) continue;
      ctx.fillStyle = style(series.colour);
      ctx.globalAlpha = 0.16;
      const known = series.high.map((_, at) => at).filter((at) => series.low[at] !== null && series.high[at] !== null);
      ctx.beginPath();
      for (const at of known) ctx.lineTo(x(at), y(series.high[at]));
      for (const at of known.reverse()) ctx.lineTo(x(at), y(series.low[at]));
      ctx.fill();
      ctx.globalAlpha = 1;
    }
    if (panel.stems && panel.series.length === 2) {
      ctx.strokeStyle = style(panel.stems);
      ctx.lineWidth = 1.4 * devicePixelRatio;
      panel.series[0].values.forEach((value, at) => {
        const other = panel.series[1].values[at];
        if (value === null || other === null) return;
        ctx.beginPath();
        ctx.moveTo(x(at), y(value));
        ctx.lineTo(x(at), y(other));
        ctx.stroke();
      });
    }
  }

  function paintOver(u, panel, marked) {
    const { ctx } = u;
    const { left, top, width, height } = u.bbox;
    ctx.save();
    for (const [place, words] of marked) {
      const at = u.valToPos(place, "x", true);
      if (at < left || at > left + width) continue;
      ctx.strokeStyle = ctx.fillStyle = style("quiet");
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(at, top);
      ctx.lineTo(at, top + height);
      ctx.stroke();
      ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
      ctx.textAlign = at > left + width / 2 ? "right" : "left";
      ctx.fillText(words, at + (at > left + width / 2 ? -5 : 5) * devicePixelRatio, top + 8 * devicePixelRatio);
    }
    ctx.setLineDash([]);
    ctx.beginPath();
    ctx.rect(left - 8, top - 8, width + 16, height + 16);
    ctx.clip();
    if (panel.isBars) return ctx.restore();
    for (const series of panel.isFirstInFront ? [...panel.series].reverse() : panel.series) {
      if (!series.dot) continue;
      ctx.strokeStyle = style(series.colour);
      ctx.lineWidth = 1.8 * devicePixelRatio;
      series.values.forEach((value, at) => {
        if (value === null) return;
        ctx.fillStyle = series.hollow[at] ? style("paper") : style(series.colour);
        ctx.beginPath();
        ctx.arc(u.valToPos(u.data[0][at], "x", true), u.valToPos(value, "y", true),
          0.55 * series.dot * devicePixelRatio, 0, 7);
        ctx.fill();
        if (series.hollow[at]) ctx.stroke();
      });
    }
    ctx.restore();
  }

  /* What each colour means, with the value under the pointer, or else the last. */
  function keysOf(panel, dashed, isShort) {
    const line = document.createElement("p");
    line.className = "keys";
    const at = document.createElement("span");
    at.className = "at";
    line.append(at);
    const values = panel.series.map((series, place) => {
      const key = document.createElement("span");
      const swatch = document.createElement("i");
      const isLine = series.width && !panel.isBars;
      const isRing = series.hollow.length && series.values.every((value, i) => value === null || series.hollow[i]);
      swatch.className = `swatch ${panel.isBars ? "square" : isLine ? "line" : isRing ? "ring" : ""} ${series.colour}`;
      if (dashed[place]) swatch.classList.add("dashed");
      const value = document.createElement("b");
      key.append(swatch, isShort ? "" : series.name || panel.title, value);
      line.append(key);
      return value;
    });
    const bands = panel.series.map((series) => {
      if (!series.high.length || !series.bandName) return null;
      const key = document.createElement("span");
      const swatch = document.createElement("i");
      swatch.className = `swatch band square ${series.colour}`;
      const value = document.createElement("b");
      key.append(swatch, series.bandName, value);
      line.append(key);
      return value;
    });
    return { line, at, values, bands };
  }

  function chart(element) {
    const plot = JSON.parse(element.dataset.plot);
    const isOverRounds = plot.places === "round";
    const made = plot.panels.filter((panel) => panel.series.length).map((panel) => one(element, plot, panel, isOverRounds));
    const observer = new ResizeObserver(() => {
      for (const { u, height } of made) u.setSize({ width: element.clientWidth, height });
    });
    observer.observe(element);
    return () => {
      observer.disconnect();
      for (const { u } of made) u.destroy();
      element.replaceChildren();
    };
  }

  function one(element, plot, panel, isOverRounds) {
    const rows = panel.isBars ? stacked(panel) : panel.series.map((series) => series.values);
    const seen = new Set();
    const dashed = panel.series.map((series) => {
      const isAgain = Boolean(series.width) && seen.has(series.colour);
      seen.add(series.colour);
      return isAgain;
    });
    const holder = document.createElement("div");
    holder.className = "panel";
    element.append(holder);
    const name = panel.title || panel.name;
    if (name) {
      const words = document.createElement("p");
      words.className = "axis-name";
      words.textContent = name;
      holder.append(words);
    }
    const { line, at, values, bands } = keysOf(panel, dashed, "short" in element.dataset);
    holder.append(line);

    const last = plot.x.reduce((found, _, i) => panel.series.some((series) => series.values[i] !== null) ? i : found, 0);
    const tell = (index) => {
      const i = index === null || index === undefined ? last : index;
      at.textContent = plot.hasTicks ? `${plot.places} ${plot.x[i]}:` : "";
      panel.series.forEach((series, place) => {
        values[place].textContent = text(series.values[i], panel.isPercentage);
        if (!bands[place]) return;
        const ends = [series.low[i], series.high[i]].map((end) => text(end, panel.isPercentage));
        bands[place].textContent = series.low[i] === null ? "–" : ends.join(" to ");
      });
    };
    tell(null);

    const ends = [plot.x[0] - 0.5, plot.x[plot.x.length - 1] + 0.5];
    const order = panel.series.map((_, place) => place);
    if (panel.isBars || panel.isFirstInFront) order.reverse(); // The lowest of a stack stands in front.
    const axis = { stroke: style("quiet"), font: "12px system-ui, sans-serif", ticks: { show: false } };
    const total = plot.panels.reduce((sum, each) => sum + each.share, 0);
    const height = Math.max(110, Math.round((0.86 * panel.height * panel.share) / total) + 26);
    const options = {
      width: element.clientWidth,
      height,
      legend: { show: false },
      padding: [10, 12, 0, 0],
      cursor: {
        y: false,
        points: { show: false },
        drag: { x: plot.hasTicks && isOverRounds, y: false, setScale: false },
        ...(isOverRounds ? { sync: { key: "round", scales: ["x", null], setSeries: false } } : {}),
      },
      scales: {
        x: { time: false, range: () => (isOverRounds && rounds) || ends },
        y: { range: () => extent(panel, rows) },
      },
      axes: [
        { ...axis, grid: { show: false }, size: 24, label: plot.places, labelFont: "12px system-ui, sans-serif",
          labelSize: 16, labelGap: 0, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000],
          values: (_, splits) => splits.map((value) => plot.hasTicks && Number.isInteger(value) ? value : "") },
        { ...axis, grid: { stroke: style("grid"), width: 1 }, size: 58, space: 26,
          values: (_, splits) => ticks(splits, panel.isPercentage) },
      ],
      series: [{}, ...order.map((place) => {
        const series = panel.series[place];
        return {
          stroke: style(series.colour),
          width: series.width,
          dash: dashed[place] ? [6, 4] : undefined,
          points: { show: false },
          ...(panel.isBars
            ? { fill: style(series.colour), width: 0, paths: uPlot.paths.bars({ size: [0.6, 60] }) }
            : series.width ? {} : { paths: () => null }),
        };
      })],
      hooks: {
        drawAxes: [(u) => paintUnder(u, panel)],
        draw: [(u) => paintOver(u, panel, plot.marked)],
        setCursor: [(u) => tell(u.cursor.idx)],
        setSelect: [(u) => {
          if (u.select.width < 8 || !isOverRounds) return;
          const from = u.posToVal(u.select.left, "x");
          const to = u.posToVal(u.select.left + u.select.width, "x");
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          if (to - from >= 1) zoom([Math.round(from) - 0.5, Math.round(to) + 0.5]);
        }],
      },
    };
    const u = new uPlot(options, [plot.x, ...order.map((place) => rows[place])], holder);
    u.over.addEventListener("dblclick", () => zoom(null));
    return { u, height };
  }

  /* Show some rounds in all charts over rounds, or with null all of them. */
  function zoom(to) {
    rounds = to;
    const elements = [...drawn.keys()];
    elements.forEach(clear);
    elements.forEach(draw);
    document.dispatchEvent(new CustomEvent("zoomed", { detail: to }));
  }

  function draw(element) {
    if (!drawn.has(element)) drawn.set(element, chart(element));
  }

  function clear(element) {
    drawn.get(element)?.();
    drawn.delete(element);
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => zoom(rounds));
  return { draw, clear, zoom };
})();
