const cards = [...document.querySelectorAll(".cards li")];
const views = [...document.querySelectorAll("input[name=view]")];
const main = document.querySelector("main");
const boxOf = (card) => card.querySelector("input[type=checkbox]");

function listRefused() {
  const refused = cards.filter((card) => boxOf(card).checked);
  cards.forEach((card) => card.classList.toggle("refused", boxOf(card).checked));
  document.getElementById("refused").value = refused.map((card) => card.dataset.id + "\n").join("");
}

function show(view) {
  view.checked = true;
  main.dataset.view = view.value;
}

cards.forEach((card) => boxOf(card).addEventListener("change", listRefused));
views.forEach((view) => view.addEventListener("change", () => show(view)));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("textarea")) return;
  const current = cards.indexOf(document.activeElement.closest(".cards li"));
  if (event.key === "j") cards[Math.min(current + 1, cards.length - 1)].focus();
  else if (event.key === "k") cards[Math.max(current - 1, 0)].focus();
  else if (event.key === "x" && current >= 0) boxOf(cards[current]).click();
  else if (views[Number(event.key) - 1]) show(views[Number(event.key) - 1]);
});
listRefused();
show(views.find((view) => view.checked)); // a browser may restore what was chosen before
