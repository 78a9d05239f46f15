const cards = [...document.querySelectorAll(".cards > li")];
const views = [...document.querySelectorAll("input[name=view]")];
const main = document.querySelector("main");
const frameBox = (card) => card.querySelector(".refuse input");
const list = document.getElementById("refused");
const windowBoxes = (card) => [...card.querySelectorAll(".windows input")];

function listRefused() {
  const refused = [];
  for (const card of cards) {
    const whole = frameBox(card).checked;
    const boxes = windowBoxes(card).filter((box) => box.checked);
    card.classList.toggle("refused", whole);
    for (const group of card.querySelectorAll("[data-window]"))
      group.classList.toggle("refused", boxes.some((box) => box.dataset.id === group.dataset.window));
    refused.push(...(whole ? [frameBox(card)] : boxes));
  }
  list.value = refused.map((box) => box.dataset.id + "\n").join("");
}

function show(view) {
  view.checked = true;
  main.dataset.view = view.value;
}

main.addEventListener("change", listRefused);
list.addEventListener("focus", () => list.scrollIntoView({ block: "nearest" })); // Chromium leaves that out for readonly
views.forEach((view) => view.addEventListener("change", () => show(view)));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("textarea")) return;
  const current = cards.indexOf(document.activeElement.closest(".cards > li"));
  if (event.key === "j") cards[Math.min(current + 1, cards.length - 1)].focus();
  else if (event.key === "k") cards[Math.max(current - 1, 0)].focus();
  else if (event.key === "x" && current >= 0) frameBox(cards[current]).click();
  else if (views[Number(event.key) - 1]) show(views[Number(event.key) - 1]);
});
listRefused();
show(views.find((view) => view.checked)); // a browser may restore what was chosen before
