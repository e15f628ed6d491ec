// What a page does beyond being read: its table sorts and filters, its points show their names.
// Without a script the page is whole, only still. Text from the page is compared and copied as text;
// nothing here makes markup of it.
"use strict";
(() => {
  const table = document.getElementById("records");

  // Points and tables: a chart's point and the table's row of the same id belong together.
  const note = document.createElement("div");
  note.className = "tip";
  note.hidden = true;
  document.body.append(note);
  const say = (mark) => {
    const title = mark.querySelector("title");
    if (!title) return;
    note.textContent = title.textContent;
    note.hidden = false;
    const box = mark.getBoundingClientRect();
    const left = Math.min(box.right + 8, document.documentElement.clientWidth - note.offsetWidth - 8);
    note.style.setProperty("left", `${Math.max(left, 8) + window.scrollX}px`);
    note.style.setProperty("top", `${box.top + window.scrollY - note.offsetHeight - 6}px`);
  };
  for (const chart of document.querySelectorAll("svg")) {
    chart.addEventListener("pointerover", (event) => {
      const mark = event.target.closest(".mark");
      if (mark) say(mark);
    });
    chart.addEventListener("pointerout", () => { note.hidden = true; });
    chart.addEventListener("click", (event) => {
      const mark = event.target.closest(".mark");
      const row = mark && document.getElementById(mark.dataset.row);
      if (!row || row.hidden) return;
      row.scrollIntoView({ block: "center" });
      row.querySelector("a").focus();
    });
  }
  if (!table) return;

  const body = table.tBodies[0];
  const marksOf = new Map();
  for (const mark of document.querySelectorAll(".mark")) {
    if (!marksOf.has(mark.dataset.row)) marksOf.set(mark.dataset.row, []);
    marksOf.get(mark.dataset.row).push(mark);
  }
  const rows = Array.from(body.rows, (row) => ({
    row,
    text: row.textContent.toLowerCase(),
    marks: marksOf.get(row.id) ?? [],
    cells: Array.from(row.cells, (cell) => cell.dataset.value ?? cell.textContent.trim()),
  }));

  // Sorting: unknown values last, whichever way it goes.
  const words = new Intl.Collator("en", { numeric: true });
  const sort = (column, kind, down) => {
    const known = rows.filter((each) => each.cells[column] !== "");
    const unknown = rows.filter((each) => each.cells[column] === "");
    known.sort(kind === "number"
      ? (a, b) => a.cells[column] - b.cells[column]
      : (a, b) => words.compare(a.cells[column], b.cells[column]));
    if (down) known.reverse();
    body.append(...known.concat(unknown).map((each) => each.row));
  };
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sort(column, head.dataset.sort, down);
    });
  });

  // Filtering: every word must be somewhere in the row; the charts fade what is left out.
  const find = document.getElementById("find");
  const status = document.getElementById("status");
  const shown = document.getElementById("shown");
  const filter = () => {
    const wanted = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const { row, text, marks } of rows) {
      const fits = wanted.every((word) => text.includes(word))
        && (!status || !status.value || row.dataset.status === status.value);
      row.hidden = !fits;
      for (const mark of marks) mark.classList.toggle("away", !fits);
      count += fits;
    }
    const all = rows.length === 1 ? "1 record" : `${rows.length} records`;
    shown.textContent = count === rows.length ? all : `${count} of ${all}`;
  };
  find.addEventListener("input", filter);
  if (status) status.addEventListener("change", filter);
  document.querySelector(".filters").hidden = false;
  filter();
})();
