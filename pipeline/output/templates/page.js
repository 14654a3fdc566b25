// Sorting, filtering, maps and comparing; everything else works without this.
"use strict";
(() => {
  const add = (parent, name, text = "") => {
    const element = document.createElement(name);
    element.textContent = text;
    parent.append(element);
    return element;
  };

  // --- sorting: every heading becomes a button ---
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v ?? cell.textContent.trim();
  };
  const number = (text) => {
    const found = parseFloat(text.replaceAll(",", ""));
    return Number.isNaN(found) ? Infinity : found;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      const text = heading.textContent;
      heading.textContent = "";
      const button = add(heading, "button", text);
      button.type = "button";
      button.addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const numeric = heading.dataset.kind === "number";
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => {
          const one = value(a, column), two = value(b, column);
          const order = numeric ? (number(one) > number(two)) - (number(one) < number(two)) : one.localeCompare(two);
          return down ? -order : order;
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  // --- filtering by classifier ---
  for (const filter of document.querySelectorAll(".filter")) {
    filter.hidden = false;
    const select = filter.querySelector("select");
    const runs = filter.parentElement.querySelectorAll("[data-classifier]");
    select.addEventListener("change", () => {
      for (const run of runs) run.hidden = select.value !== "" && run.dataset.classifier !== select.value;
    });
  }

  // --- maps ---
  const ways = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  for (const map of document.querySelectorAll(".map")) {
    const {names, rings} = JSON.parse(map.querySelector("script").textContent);
    const svg = map.querySelector("svg"), tile = map.querySelector(".tile"), status = map.querySelector("[role=status]");
    const paths = [...svg.querySelectorAll("path[style]")], buttons = [...map.querySelectorAll(".legend button")];
    const select = map.querySelector("select"), rows = [...map.querySelector("tbody").rows];
    const columns = Number(map.dataset.columns), side = parseFloat(tile.style.width);
    const classes = buttons.map((button) => button.textContent);
    const points = paths.flatMap((path, label) =>
      [...path.getAttribute("d").matchAll(/M(\d+) (\d+)/g)].map(([, x, y]) => ({x: Number(x), y: Number(y), label})));
    const off = (point) => buttons[point.label].getAttribute("aria-pressed") === "false";
    const circles = (chosen, radius) =>
      chosen.map(({x, y}) => `M${x - radius} ${y}a${radius} ${radius} 0 1 0 ${2 * radius} 0a${radius} ${radius} 0 1 0 ${-2 * radius} 0`).join("");
    let at = -1;
    const said = () => rings[select.selectedIndex].said;
    const choose = (number) => {
      at = number;
      const point = points[at];
      svg.querySelector(".at").setAttribute("d", circles([point], 11));
      const what = said()[at] ?? rings[select.selectedIndex].otherwise;
      status.textContent = `${names[at]}: ${classes[point.label]}, ${classes[what] ? `taken for ${classes[what]}` : what}`;
      tile.hidden = !tile.style.backgroundImage;
      tile.style.backgroundPosition = `${-(at % columns) * side}px ${-Math.floor(at / columns) * side}px`;
    };
    const draw = () => {
      const ringed = Object.keys(said()).map((number) => points[number]);
      svg.querySelector(".ring").setAttribute("d", circles(ringed.filter((point) => !off(point)), 7));
      paths.forEach((path, label) => (path.style.display = buttons[label].getAttribute("aria-pressed") === "true" ? "" : "none"));
      rows.forEach(({cells}, label) => {
        const count = ringed.filter((point) => point.label === label).length;
        const all = points.filter((point) => point.label === label).length;
        cells[2].textContent = count.toLocaleString("en");
        cells[3].textContent = `${((100 * count) / Math.max(1, all)).toFixed(1)}\u00a0%`;
      });
      if (at >= 0) choose(at);
    };
    const nearest = (cost) => {
      let best = -1, least = Infinity;
      points.forEach((point, number) => {
        const own = off(point) ? Infinity : cost(point, number);
        if (own < least) [best, least] = [number, own];
      });
      if (best >= 0) choose(best);
    };
    const point = (event) => {
      const {x, y} = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      nearest((other) => {
        const distance = Math.hypot(other.x - x, other.y - y);
        return distance < 25 ? distance : Infinity;
      });
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("keydown", (event) => {
      const way = ways[event.key], page = {PageDown: 1, PageUp: -1}[event.key];
      if (!way && !page) return;
      event.preventDefault();
      if (page) {
        const ringed = Object.keys(said()).map(Number).filter((number) => !off(points[number]));
        const next = page > 0 ? ringed.find((number) => number > at) : ringed.findLast((number) => number < at);
        if (ringed.length) choose(next ?? ringed.at(page > 0 ? 0 : -1));
      } else if (at < 0) {
        nearest(({x, y}) => Math.hypot(x - 500, y - 500));
      } else {
        const from = points[at];
        nearest((other, number) => {
          const dx = other.x - from.x, dy = other.y - from.y;
          const along = dx * way[0] + dy * way[1], across = Math.abs(dx * way[1] + dy * way[0]);
          return number !== at && along > 0 && along >= across ? Math.hypot(dx, dy) + across : Infinity;
        });
      }
    });
    for (const button of buttons) {
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "false");
        draw();
      });
    }
    select.addEventListener("change", draw);
    select.closest("p").hidden = false;
    draw();
  }

  // --- comparing ---
  const probability = (p) => (p < 0.0001 ? "p < 0.0001" : `p = ${p.toFixed(4)}`);
  const numbers = (article) => {
    const found = new Map();
    for (const row of article.querySelectorAll(".scores tbody tr, .classes tbody tr")) {
      const table = row.closest("table");
      const columns = [...table.tHead.rows[0].cells].slice(1);
      [...row.cells].slice(1).forEach((cell, index) => {
        if (cell.colSpan === 1 || "v" in cell.dataset) {
          const column = cell.colSpan === 1 ? columns[index].textContent : "";
          found.set(`${row.cells[0].textContent} ${column}`.trim(), cell);
        }
      });
    }
    return found;
  };
  const settings = (article) =>
    new Map([...article.querySelectorAll("dt")].map((dt) => [dt.textContent, dt.nextElementSibling.textContent]));
  const table = (parent, title, headings, rows) => {
    if (!rows.length) return;
    add(parent, "h4", title);
    const region = add(parent, "div");
    region.className = "scroll low";
    region.tabIndex = 0;
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", title);
    const made = add(region, "table");
    const head = made.createTHead().insertRow();
    add(head, "td");
    for (const heading of headings) {
      const cell = add(head, "th", heading);
      cell.scope = "col";
      if (headings.length > 2) cell.dataset.kind = "number";
    }
    const body = made.createTBody();
    for (const [name, ...cells] of rows) {
      const row = body.insertRow();
      add(row, "th", name).scope = "row";
      for (const cell of cells) add(row, "td", cell).className = headings.length > 2 ? "n" : "";
    }
  };

  for (const section of document.querySelectorAll(".compare")) {
    // Of each run and each one after it: rows that only the one and only the other has right, and McNemar's mid-p.
    const pairs = JSON.parse(section.querySelector("script").textContent);
    const articles = [...section.parentElement.querySelectorAll("article")];
    const pair = (one, two) => pairs[Math.min(one, two)]?.[Math.max(one, two)];
    const partners = (one) => articles.map((_, two) => two).filter((two) => two !== one && pair(one, two));
    const [first, second] = section.querySelectorAll("select");
    const verdict = section.querySelector("[role=status]"), differences = section.querySelector(".differences");
    const fill = (select, choices) => {
      const before = select.value;
      select.replaceChildren();
      for (const choice of choices) add(select, "option", articles[choice].dataset.name).value = choice;
      if (choices.includes(Number(before)) && before !== "") select.value = before;
    };
    const compare = () => {
      fill(second, partners(Number(first.value)));
      const [low, high] = [Number(first.value), Number(second.value)];
      const [one, two] = [articles[low], articles[high]];
      const only = pair(low, high).slice(0, 2), p = pair(low, high)[2];
      if (low > high) only.reverse();
      Object.assign(verdict.dataset, {p, first: only[0], second: only[1]});
      verdict.textContent =
        `Of ${Number(one.dataset.rows).toLocaleString("en")} test rows the first alone is right on ` +
        `${only[0].toLocaleString("en")}, the second alone on ${only[1].toLocaleString("en")}: ` +
        `McNemar's test (mid-p) ${probability(p)}. ` +
        (p < 0.05 ? "The difference is unlikely to be chance." : "The difference may well be chance.");
      for (const line of section.querySelectorAll("[data-line]")) {
        line.classList.toggle("first", Number(line.dataset.line) === low);
        line.classList.toggle("second", Number(line.dataset.line) === high);
      }
      for (const drawing of section.querySelectorAll(".curves svg")) {
        drawing.style.display = drawing.querySelector(".first, .second") ? "" : "none";
      }
      differences.replaceChildren();
      const [mine, theirs] = [settings(one), settings(two)];
      const names = [...new Set([...mine.keys(), ...theirs.keys()])].filter((name) => name !== "files");
      table(
        differences, "Settings that differ", ["first", "second"],
        names.filter((name) => mine.get(name) !== theirs.get(name))
          .map((name) => [name, mine.get(name) ?? "–", theirs.get(name) ?? "–"]),
      );
      const [ours, others] = [numbers(one), numbers(two)];
      table(
        differences, "Every number", ["first", "second", "difference"],
        [...ours].filter(([name]) => others.has(name)).map(([name, cell]) => {
          const other = others.get(name);
          const [a, b] = [cell, other].map((each) => parseFloat((each.dataset.v ?? each.textContent).replaceAll(",", "")));
          const digits = cell.textContent.split(".")[1]?.replace(/\D/g, "").length ?? 0;
          const share = cell.textContent.includes("%") && "v" in cell.dataset ? 100 : 1;
          const gap = share * (b - a);
          const text = Number.isNaN(gap) ? "–" : `${gap > 0 ? "+" : ""}${gap.toFixed(digits)}`.replace("-", "−");
          return [name, cell.textContent, other.textContent, text];
        }),
      );
    };
    fill(first, articles.map((_, run) => run).filter((run) => partners(run).length));
    first.addEventListener("change", compare);
    second.addEventListener("change", compare);
    section.hidden = false;
    compare();
  }
})();
