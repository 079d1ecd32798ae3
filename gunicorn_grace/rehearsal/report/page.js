
// Every shape brings what is known of it as its <title>. Moved into an attribute, it is shown at once, beside a finger too.
const tip = document.getElementById("tip");
for (const title of document.querySelectorAll("svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
function show(event) {
  const shape = event.target.closest && event.target.closest("[data-tip]");
  tip.hidden = !shape;
  if (!shape) return;
  tip.textContent = shape.dataset.tip;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = Math.max(8, Math.min(event.clientX + 12, room)) + "px";
  const above = event.clientY - tip.offsetHeight - 14;
  tip.style.top = (above > 4 ? above : event.clientY + 18) + "px";
}
document.addEventListener("pointermove", show);
document.addEventListener("pointerdown", show);
document.addEventListener("scroll", () => { tip.hidden = true; }, {passive: true});
