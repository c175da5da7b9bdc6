// The divider and the part in view stay where they are while the picture is scrolled, or replaced by another result.
let share = 0.5;
let corner = [0, 0];
const find = (name) => element.querySelector(name);
const place = () => {
  const view = find(".view");
  if (!view) return;
  find(".stack").style.setProperty("--at", `${view.scrollLeft + share * view.clientWidth}px`);
  find(".bar input").value = 1000 * share;
};
const drag = (event) => {
  const view = find(".view");
  if (!view || !view.contains(event.target) || event.pointerType === "touch" || !(event.buttons & 1)) return;
  share = Math.min(1, Math.max(0, (event.clientX - view.getBoundingClientRect().left) / view.clientWidth));
  place();
};
element.addEventListener("input", (event) => { share = event.target.value / 1000; place(); });
element.addEventListener("pointerdown", drag);
element.addEventListener("pointermove", drag);
element.addEventListener("scroll", (event) => {
  corner = [event.target.scrollLeft, event.target.scrollTop];
  place();
}, true);
element.addEventListener("click", (event) => {
  const map = event.target.closest(".map");
  if (!map) return;
  const box = map.getBoundingClientRect();
  trigger("select", { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height });
});
// What is too large is refused before it is sent; the server would refuse it too.
const refuse = (event) => {
  const files = [...(event.target.files ?? event.dataTransfer?.files ?? [])];
  const large = files.find((file) => file.size > props.megabytes * 1e6);
  if (!large) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  if (event.target.files) event.target.value = "";
  trigger("large", { name: large.name });
};
window.addEventListener("change", refuse, true);
window.addEventListener("drop", refuse, true);
window.addEventListener("resize", place);
watch("value", () => { find(".view")?.scrollTo(...corner); place(); });
