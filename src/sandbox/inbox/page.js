// Refreshes the list, and shows times in the reader's own zone. Everything works without it.
"use strict";

const list = document.getElementById("list");
const selected = document.body.dataset.selected;
let shown = "";

function localTimes(root) {
  for (const time of root.querySelectorAll("time")) {
    const date = new Date(time.dateTime);
    time.textContent = date.toLocaleTimeString();
    time.title = date.toLocaleString();
  }
}

async function refresh() {
  if (document.hidden) return;
  const answer = await fetch("/inbox/list" + (selected ? "?selected=" + selected : ""));
  if (!answer.ok) return;
  const html = await answer.text();
  if (html === shown) return;
  // The first mail ends the page that says how to send one.
  if (!selected && html.includes("<ol")) return location.reload();
  shown = html;
  const scrolled = list.scrollTop;
  list.innerHTML = html;
  list.scrollTop = scrolled;
  localTimes(list);
}

localTimes(document);
setInterval(() => refresh().catch(() => {}), 1500);
