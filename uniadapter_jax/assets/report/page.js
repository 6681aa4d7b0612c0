"use strict";
// Tables sort by a click or a key on a head; cells without a number stay last.
for (const table of document.querySelectorAll("table.table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const first = [...body.rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const next = { ascending: "descending", descending: null }[now] ?? (now ? null : "ascending");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const rows = next ? [...first].sort((a, b) => compare(key(a, column), key(b, column), sign)) : first;
      body.append(...rows);
    });
  });
}
function key(row, column) {
  return row.cells[column].dataset.key ?? "";
}
function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const [x, y] = [Number(a), Number(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) return sign * (a < b ? -1 : a > b ? 1 : 0);
  return sign * (x - y);
}
