"use strict";

// Tables: a click on a column's button sorts by it; again, the other way round. Rows without a value stay last.
for (const button of document.querySelectorAll("th[aria-sort] button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement;
    const body = header.closest("table").tBodies[0];
    const column = header.cellIndex;
    const before = header.getAttribute("aria-sort");
    const first = header.dataset.first || "ascending";
    const direction = before === "none" ? first : before === "ascending" ? "descending" : "ascending";
    const sign = direction === "ascending" ? 1 : -1;
    const value = (row) => {
      const cell = row.cells[column];
      return cell && cell.dataset.value !== undefined ? cell.dataset.value : null;
    };
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (header.classList.contains("num") ? x - y : x.localeCompare(y));
    };
    for (const other of header.parentElement.cells) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    }
    header.setAttribute("aria-sort", direction);
    body.append(...[...body.rows].sort(compare));
  });
}

// Charts: the pointer, a finger or the arrow keys move a cursor over the steps; the numbers are those of the table below.
for (const chart of document.querySelectorAll(".chart")) {
  const area = chart.querySelector(".area");
  const tip = chart.querySelector(".tip");
  const cursor = chart.querySelector(".cursor");
  const table = chart.querySelector("details table");
  const names = [...table.tHead.rows[0].cells].slice(1).map((cell) => cell.textContent);
  const rows = [...table.tBodies[0].rows];
  const shares = rows.map((row) => Number(row.dataset.share));
  let step = 0;

  const show = (chosen) => {
    step = Math.max(0, Math.min(rows.length - 1, chosen));
    const [share, ...rates] = [...rows[step].cells].map((cell) => cell.textContent);
    const title = document.createElement("strong");
    title.textContent = `${share} embedded again`;
    const lines = names.map((name, i) => {
      const line = document.createElement("span");
      const rate = document.createElement("span");
      rate.textContent = `${rates[i]} %`;
      line.append(name, rate);
      return line;
    });
    tip.replaceChildren(title, ...lines);
    tip.hidden = false;
    area.classList.add("read");
    area.setAttribute("aria-valuenow", String(step));
    area.setAttribute("aria-valuetext", `${title.textContent}: ${names.map((name, i) => `${name} ${rates[i]} %`).join(", ")}`);
    const at = shares[step] * area.clientWidth;
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    // beside the cursor, on the side with more room, and never out of the area
    const left = shares[step] < 0.5 ? at + 12 : at - 12 - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(area.clientWidth - tip.offsetWidth, left))}px`;
    tip.style.top = `${area.clientHeight - tip.offsetHeight - 8}px`;
  };
  const hide = () => {
    tip.hidden = true;
    area.classList.remove("read");
  };
  const nearest = (event) => {
    const box = area.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    const distances = shares.map((each) => Math.abs(each - share));
    show(distances.indexOf(Math.min(...distances)));
  };
  area.addEventListener("pointermove", nearest);
  area.addEventListener("pointerdown", nearest);
  area.addEventListener("pointerleave", () => document.activeElement === area || hide());
  area.addEventListener("focus", () => show(step));
  area.addEventListener("blur", hide);
  area.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: step - 1, ArrowDown: step - 1, ArrowRight: step + 1, ArrowUp: step + 1, Home: 0, End: rows.length - 1 };
    if (event.key in moves) {
      show(moves[event.key]);
      event.preventDefault();
    } else if (event.key === "Escape") {
      hide();
    }
  });
}

// On paper everything is open.
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
