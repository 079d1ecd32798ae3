
// The <title> of each shape describes it. A browser shows a title late, and never for a finger.
// So the script moves the text into an attribute and shows it at once, beside mouse or finger.
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
