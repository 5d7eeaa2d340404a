"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));
  const minus = "\u2212";

  function signed(value, digits) {
    if (value === null) return "\u2013";
    const size = Math.abs(value).toFixed(digits);
    return Number(size) === 0 ? size : (value < 0 ? minus : "+") + size;
  }

  function shade(value, limit) {
    if (value === null) return null;
    if (!(limit > 0)) return data.steps;
    return data.steps + Math.floor(data.steps * Math.max(-1, Math.min(1, value / limit)) + 0.5);
  }

  function setShade(element, step) {
    for (const name of Array.from(element.classList)) if (/^s\d+$/.test(name)) element.classList.remove(name);
    if (step !== null) element.classList.add("s" + step);
  }

  /* One of the elements is in the tab order; arrows move to others. `next` says which, or gives null. */
  function rove(elements, next) {
    elements.forEach((element, place) => { element.tabIndex = place === 0 ? 0 : -1; });
    let current = elements[0];
    const moveTo = (element) => {
      current.tabIndex = -1;
      current = element;
      current.tabIndex = 0;
    };
    for (const element of elements) {
      element.addEventListener("focus", () => moveTo(element));
      element.addEventListener("keydown", (event) => {
        if (event.altKey || event.metaKey) return;
        const other = next(element, event.key, event.ctrlKey);
        if (!other) return;
        event.preventDefault();
        moveTo(other);
        other.focus();
      });
    }
  }

  /* Show what an element says while it is pointed at or has the focus. */
  function describe(elements, panel, text) {
    const rest = { text: panel.textContent };
    for (const element of elements) {
      const show = () => { panel.textContent = text(element); };
      const hide = () => {
        const focused = elements.includes(document.activeElement) ? document.activeElement : null;
        panel.textContent = focused ? text(focused) : rest.text;
      };
      element.addEventListener("mouseenter", show);
      element.addEventListener("focus", show);
      element.addEventListener("mouseleave", hide);
      element.addEventListener("blur", () => { panel.textContent = rest.text; });
    }
    return (resting) => { panel.textContent = rest.text = resting; };
  }

  /* Arrows move along a list. */
  function along(elements) {
    return (element, key) => {
      const place = elements.indexOf(element);
      const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: elements.length - 1 }[key];
      return to === undefined ? null : elements[to];
    };
  }

  const tokenLists = all(".tokens").map((list, number) => {
    const tokens = all("li", list);
    const panel = list.parentElement.querySelector(".values");
    const of = data.pairs[number];
    let site = data.chosen;
    rove(tokens, along(tokens));
    const setResting = describe(tokens, panel, (token) => {
      const before = token.dataset.before === undefined ? "" : `, \u201c${token.dataset.before}\u201d before`;
      const effect = signed(of.effects[site][tokens.indexOf(token)], 4);
      return `\u201c${token.textContent}\u201d (${token.dataset.class}${before}): effect of ${data.sites[site]} ${effect}`;
    });
    function colour(chosen) {
      site = chosen;
      const effects = of.effects[site];
      tokens.forEach((token, place) => {
        setShade(token, shade(effects[place], of.limit));
        token.dataset.value = signed(effects[place], 2).replace("0.00", "0").replace("0.", ".");
      });
      const known = tokens.map((_, place) => place).filter((place) => effects[place] !== null);
      known.sort((one, other) => Math.abs(effects[other]) - Math.abs(effects[one]));
      if (known.length) {
        const named = known.slice(0, 3).map((place) => `${tokens[place].textContent} ${signed(effects[place], 3)}`);
        setResting(`Strongest: ${named.join(", ")}.`);
      }
    }
    colour(site);
    return colour;
  });

  const select = document.getElementById("site");
  const shown = document.getElementById("shown");
  const cells = all(".grid td[data-site]");

  function choose(number, said) {
    for (const colour of tokenLists) colour(number);
    select.value = data.sites[number];
    shown.textContent = said || `Effects of ${data.sites[number]}.`;
    for (const cell of cells) {
      if (cell.dataset.site === data.sites[number]) cell.setAttribute("aria-selected", "true");
      else cell.removeAttribute("aria-selected");
    }
  }

  /* The site of a cell, or else one of its layer. Gives what happened, as a sentence. */
  function chooseCell(cell) {
    const name = cell.dataset.site;
    let number = data.sites.indexOf(name);
    const isIt = number >= 0;
    if (!isIt) number = data.layers.findIndex((layer) => String(layer) === cell.dataset.layer);
    if (number < 0) return `The example pairs have no effects of ${name}, nor of another site of its layer.`;
    const said = isIt
      ? `The example pairs now show the effects of ${name}.`
      : `The example pairs have no effects of ${name}; they now show those of ${data.sites[number]}.`;
    choose(number, said);
    for (const other of cells) if (other.dataset.site === name) other.setAttribute("aria-selected", "true");
    return said;
  }

  if (select) {
    select.addEventListener("change", () => choose(data.sites.indexOf(select.value)));
    document.getElementById("valued").addEventListener("change", (event) => {
      for (const list of all(".tokens")) list.classList.toggle("valued", event.target.checked);
    });
    choose(data.chosen);
  }

  for (const grid of all(".grid")) {
    const rows = all("tbody tr", grid).map((row) => all("td", row));
    const flat = rows.flat();
    const panel = grid.closest(".map").querySelector(".values");
    rove(flat, (cell, key, isWhole) => {
      const row = rows.findIndex((of) => of.includes(cell));
      const column = rows[row].indexOf(cell);
      const last = rows[row].length - 1;
      const to = {
        ArrowRight: [row, column + 1],
        ArrowLeft: [row, column - 1],
        ArrowDown: [row + 1, column],
        ArrowUp: [row - 1, column],
        Home: [isWhole ? 0 : row, 0],
        End: [isWhole ? rows.length - 1 : row, last],
      }[key];
      return to && rows[to[0]] ? rows[to[0]][to[1]] : null;
    });
    describe(flat, panel, (cell) => cell.dataset.details);
    const act = (cell) => {
      if (select && cell.dataset.site) panel.textContent = `${cell.dataset.details}. ${chooseCell(cell)}`;
    };
    for (const cell of flat) {
      cell.addEventListener("click", () => { cell.focus(); act(cell); });
      cell.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        act(cell);
      });
    }
  }

  for (const block of all(".words")) {
    const panel = block.querySelector(".values");
    for (const text of all("article .mechir-text", block)) {
      const units = all(".u", text);
      if (units.length) rove(units, along(units));
    }
    describe(all("article .u", block), panel, (unit) => `\u201c\u2068${unit.textContent}\u2069\u201d: ${unit.title}`);
  }

  for (const table of all(".sortable")) {
    const headings = all("thead th", table);
    headings.forEach((heading, column) => {
      const button = heading.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const isNumber = heading.classList.contains("number");
        const before = heading.getAttribute("aria-sort");
        const ascending = before ? before === "descending" : !isNumber;
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        const rows = all("tbody tr", table).map((row) => {
          const cell = row.children[column];
          const value = isNumber ? parseFloat(cell.dataset.sort) : cell.textContent;
          return { row, value };
        });
        const isMissing = (value) => isNumber && Number.isNaN(value);
        rows.sort((one, other) => {
          if (isMissing(one.value) || isMissing(other.value)) return isMissing(one.value) - isMissing(other.value);
          const order = isNumber ? one.value - other.value
            : one.value.localeCompare(other.value, "en", { numeric: true });
          return ascending ? order : -order;
        });
        table.tBodies[0].append(...rows.map((of) => of.row));
      });
    });
  }

  const filter = document.getElementById("filter");
  if (filter) {
    const pairs = all("#all-pairs tbody tr").map((row) => ({ row, text: row.textContent.toLowerCase() }));
    filter.addEventListener("input", () => {
      const wanted = filter.value.trim().toLowerCase();
      let n = 0;
      for (const { row, text } of pairs) {
        row.hidden = !text.includes(wanted);
        if (!row.hidden) n += 1;
      }
      document.getElementById("found").textContent = `${n.toLocaleString("en")} pairs`;
    });
  }

  for (const controls of all(".controls")) controls.hidden = false;
})();
