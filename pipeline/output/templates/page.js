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

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const ones = (byte) => {
    let count = 0;
    for (; byte; byte &= byte - 1) count += 1;
    return count;
  };
  const logFactorials = [0];
  const logFactorial = (n) => {
    while (logFactorials.length <= n) {
      logFactorials.push(logFactorials[logFactorials.length - 1] + Math.log(logFactorials.length));
    }
    return logFactorials[n];
  };
  // McNemar's test, mid-p: the same as pipeline.certainty.mcnemar.
  const mcnemar = (onlyFirst, onlySecond) => {
    const rows = onlyFirst + onlySecond, fewer = Math.min(onlyFirst, onlySecond);
    if (rows === 0) return 1;
    let sum = 0, chance = 0;
    for (let k = 0; k <= fewer; k += 1) {
      chance = Math.exp(logFactorial(rows) - logFactorial(k) - logFactorial(rows - k) - rows * Math.LN2);
      sum += chance;
    }
    return Math.min(1, 2 * sum - chance);
  };
  const say = (p) => (p < 0.0001 ? "p < 0.0001" : `p = ${p.toFixed(4)}`);

  const verdict = document.getElementById("verdict"), both = document.getElementById("both");
  const compare = () => {
    const one = document.getElementById(first.value), two = document.getElementById(second.value);
    both.replaceChildren();
    if (one === two) {
      verdict.textContent = "These are the same run. Choose two.";
      return;
    }
    if (!one.dataset.bits || one.dataset.key !== two.dataset.key) {
      verdict.textContent = "These runs were not tested on the same rows, so no test can compare them row by row.";
    } else {
      const a = bytes(one.dataset.bits), b = bytes(two.dataset.bits);
      let onlyFirst = 0, onlySecond = 0;
      a.forEach((byte, index) => {
        onlyFirst += ones(byte & ~b[index] & 255);
        onlySecond += ones(b[index] & ~byte & 255);
      });
      const p = mcnemar(onlyFirst, onlySecond);
      verdict.dataset.p = String(p);
      verdict.dataset.first = String(onlyFirst);
      verdict.dataset.second = String(onlySecond);
      verdict.textContent =
        `Of ${Number(one.dataset.rows).toLocaleString("en")} test rows the first alone is right on ` +
        `${onlyFirst.toLocaleString("en")}, the second alone on ${onlySecond.toLocaleString("en")}: ` +
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
