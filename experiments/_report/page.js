"use strict";
(() => {
  const root = document.documentElement;
  const all = (what, from = document) => [...from.querySelectorAll(what)];

  // Theme: what the reader's system says, until the switch says otherwise.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const remembered = (() => { try { return localStorage.getItem("theme"); } catch { return null; } })();
  if (remembered === "light" || remembered === "dark") root.dataset.theme = remembered;
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a file may keep nothing */ }
  });

  // Sorting: numbers by value, words by letter, what is missing last either way.
  const key = (cell) => {
    const given = cell.dataset.sort ?? cell.textContent.trim();
    const number = Number(given);
    return given === "" || given === "–" ? null : Number.isNaN(number) ? given.toLowerCase() : number;
  };
  const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  for (const table of all("table.sortable")) {
    for (const button of all("thead th button", table)) {
      button.addEventListener("click", () => {
        const head = button.closest("th");
        const place = [...head.parentNode.children].indexOf(head);
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of head.parentNode.children) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const lines = [...body.rows].map((row) => [key(row.cells[place]), row]);
        lines.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          return up ? order(a, b) : order(b, a);
        });
        body.append(...lines.map(([, row]) => row));
      });
    }
  }

  // All columns of a wide matrix, or those that are looked at first.
  for (const button of all("button.more")) {
    const table = document.getElementById(button.getAttribute("aria-controls"));
    const say = button.textContent;
    button.addEventListener("click", () => {
      const brief = table.classList.toggle("brief");
      button.setAttribute("aria-pressed", String(!brief));
      button.textContent = brief ? say : "Show fewer columns";
    });
  }

  // One tooltip for everything that has something to tell.
  const tip = document.getElementById("tip");
  const show = (target) => {
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const box = target.getBoundingClientRect();
    const own = tip.getBoundingClientRect();
    const left = Math.min(Math.max(box.left + box.width / 2 - own.width / 2, 8), innerWidth - own.width - 8);
    const above = box.top - own.height - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : Math.min(box.bottom + 8, innerHeight - own.height - 4)}px`;
  };
  const hide = () => { tip.hidden = true; };
  const told = (event) => (event.target instanceof Element ? event.target.closest("[data-tip]") : null);
  document.addEventListener("pointerover", (event) => { const it = told(event); if (it && it.dataset.tip) show(it); else hide(); });
  document.addEventListener("focusin", (event) => { const it = told(event); if (it && it.matches(":focus-visible")) show(it); });
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", hide, true);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

  // The command, to be run again.
  for (const button of all("button.copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentNode.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
      }
    });
  }

  // On paper everything is open.
  const closed = new Set();
  addEventListener("beforeprint", () => { for (const one of all("details:not([open])")) { closed.add(one); one.open = true; } });
  addEventListener("afterprint", () => { for (const one of closed) one.open = false; closed.clear(); });
})();
