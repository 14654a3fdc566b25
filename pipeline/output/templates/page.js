// Sorting and comparing; everything else works without this.
"use strict";
(() => {
  const table = document.getElementById("leaderboard");
  if (!table) return;

  // --- sorting: every heading becomes a button ---
  const headings = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numeric = heading.dataset.kind === "number";
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const one = value(a, column), two = value(b, column);
        const order = numeric ? Number(one) - Number(two) : one.localeCompare(two);
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });

  // --- comparing ---
  const section = document.getElementById("compare");
  const first = document.getElementById("first"), second = document.getElementById("second");
  if (first.options.length < 2) return;
  section.hidden = false;

  // Of each run and each one after it: rows that only the one and only the other has right, and McNemar's mid-p.
  const pairs = JSON.parse(document.getElementById("pairs").textContent);
  const say = (p) => (p < 0.0001 ? "p < 0.0001" : `p = ${p.toFixed(4)}`);

  const verdict = document.getElementById("verdict"), both = document.getElementById("both");
  const compare = () => {
    const one = document.getElementById(first.value), two = document.getElementById(second.value);
    const [low, high] = [first.selectedIndex, second.selectedIndex].sort((a, b) => a - b);
    both.replaceChildren();
    if (low === high) {
      verdict.textContent = "These are the same run. Choose two.";
      return;
    }
    const pair = pairs[low]?.[high];
    if (!pair) {
      verdict.textContent = "These runs were not tested on the same rows, so no test can compare them row by row.";
    } else {
      const p = pair[2], only = pair.slice(0, 2);
      if (low !== first.selectedIndex) only.reverse();
      Object.assign(verdict.dataset, {p, first: only[0], second: only[1]});
      verdict.textContent =
        `Of ${Number(one.dataset.rows).toLocaleString("en")} test rows the first alone is right on ` +
        `${only[0].toLocaleString("en")}, the second alone on ${only[1].toLocaleString("en")}: ` +
        `McNemar's test (mid-p) ${say(p)}. ` +
        (p < 0.05 ? "The difference is unlikely to be chance." : "The difference may well be chance.");
    }
    for (const article of [one, two]) {
      const side = document.createElement("div");
      const title = document.createElement("h3");
      title.textContent = article.dataset.name;
      side.append(title);
      for (const part of article.querySelectorAll(":scope > .scores, :scope > .figures, :scope > dl")) {
        side.append(part.cloneNode(true));
      }
      both.append(side);
    }
  };
  first.addEventListener("change", compare);
  second.addEventListener("change", compare);
  compare();
})();
