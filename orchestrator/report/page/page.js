"use strict";
// Hides what is not looked for. The page is complete without it.
const form = document.getElementById("filter");
const hosts = new Map([...document.querySelectorAll(".fleet tbody tr")].map((row) => [row.dataset.host, row.dataset]));
const parts = [...document.querySelectorAll("[data-host]")];
const matrix = document.querySelector(".matrix table");
const sums = [...matrix.querySelectorAll(".sums td")].map((cell) => cell.textContent !== "");

function filter() {
  const words = form.elements.text.value.toLowerCase().split(/\s+/);
  const verdicts = new Set([...form.querySelectorAll("[name=verdict]:checked")].map((box) => box.value));
  const shown = new Set();
  for (const [id, host] of hosts) {
    if (verdicts.has(host.verdict) && words.every((word) => host.search.includes(word))) {
      shown.add(id);
    }
  }
  for (const part of parts) {
    part.hidden = !shown.has(part.dataset.host);
  }
  form.elements.shown.value = shown.size === hosts.size ? "" : `${shown.size} of ${hosts.size} hosts`;
}

function narrow() {
  const all = !form.elements.problems.checked;
  for (const row of matrix.rows) {
    sums.forEach((problem, number) => {
      row.cells[number + 1].hidden = !(all || problem);
    });
  }
}

form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", (event) => (event.target.name === "problems" ? narrow() : filter()));
form.hidden = false;
filter(); // a browser keeps what was typed when the page is loaded again
narrow();
