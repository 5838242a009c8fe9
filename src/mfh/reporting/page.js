"use strict";
// Headings of tables become buttons that sort the rows: up, down, and as they were.
const number = text => Number((text.replace("\u2212", "-").match(/-?[\d.,]+(e[+-]?\d+)?/) || [""])[0].replace(/,/g, "") || NaN);
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], rows = [...body.rows];
  for (const heading of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const place = heading.cellIndex, before = heading.ariaSort;
      const next = before === "ascending" ? "descending" : before === "descending" ? "none" : "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      if (next !== "none") heading.setAttribute("aria-sort", next);
      const text = row => row.cells[place].textContent.trim(), numeric = heading.classList.contains("number");
      const compare = (one, two) => {
        const [a, b] = numeric ? [number(text(one)), number(text(two))] : [text(one), text(two)];
        if (numeric && (isNaN(a) || isNaN(b))) return isNaN(a) - isNaN(b);  // empty cells stay below
        const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
        return next === "descending" ? -order : order;
      };
      body.append(...(next === "none" ? rows : [...rows].sort(compare)));
    });
  }
}
