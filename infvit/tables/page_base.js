"use strict";
const data = id => JSON.parse(document.getElementById(id)?.textContent ?? "null");
const all = query => [...document.querySelectorAll(query)];

// The tip: a title and pairs of name and value, beside the pointer and within the window.
const tip = document.getElementById("tip");
function show(title, facts, x, y) {
  const heading = document.createElement("strong");
  const list = document.createElement("dl");
  heading.textContent = title;
  for (const [name, value] of facts) {
    list.append(Object.assign(document.createElement("dt"), {textContent: name}));
    list.append(Object.assign(document.createElement("dd"), {textContent: value}));
  }
  tip.hidden = false;
  tip.replaceChildren(heading, list);
  move(x, y);
}
function move(x, y) {
  const left = x + 18 + tip.offsetWidth > innerWidth ? Math.max(12, x - 18 - tip.offsetWidth) : x + 18;
  tip.style.left = `${Math.max(12, Math.min(left, innerWidth - tip.offsetWidth - 12))}px`;
  tip.style.top = `${Math.max(12, Math.min(y + 14, innerHeight - tip.offsetHeight - 12))}px`;
}

// What scrolls to the right fades out there.
function fade() {
  for (const box of all(".scroll")) box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 2);
}
for (const box of all(".scroll")) box.addEventListener("scroll", fade, {passive: true});
addEventListener("resize", fade);
fade();

// Light and dark: the system's choice until the button is pressed. A browser may refuse to remember it.
const system = matchMedia("(prefers-color-scheme: dark)");
const theme = () => document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light");
const remembered = () => { try { return localStorage.getItem("infvit-theme"); } catch { return null; } };
function wear(choice) {
  if (choice) document.documentElement.dataset.theme = choice;
  document.getElementById("theme").textContent = theme() === "dark" ? "☀ Light" : "☾ Dark";
  document.dispatchEvent(new Event("worn"));
}
wear(remembered());
document.getElementById("theme").addEventListener("click", () => {
  wear(theme() === "dark" ? "light" : "dark");
  try { localStorage.setItem("infvit-theme", theme()); } catch { /* only this visit, then */ }
});
system.addEventListener("change", () => wear());
