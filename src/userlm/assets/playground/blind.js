// The blind test. The server keeps which side is whose.
import { call, el, find, quoted, showError, visible } from "/shared.js";

let now = null; // the pair that is shown
let busy = false;

function turn([role, text]) {
  const said = el("div", { className: "said" }, el("div", { className: "label" }, el("b", {}, role === "assistant" ? "Assistant" : "User")), quoted(text));
  return el("li", { className: `turn ${role === "assistant" ? "assistant" : "user"}` }, said);
}

function show(pair) {
  now = pair;
  find("who").hidden = true;
  find("test").hidden = pair.pair === null;
  if (pair.pair === null) {
    find("done").textContent = `Done, thank you. In ${pair.taken} of ${pair.rated} pairs you took the model for the person; `
      + `by chance it would be about ${Math.round(pair.rated / 2)}.`;
    return;
  }
  find("count").textContent = `Pair ${pair.rated + 1} of ${pair.of}`;
  find("goal").replaceChildren(visible(pair.intent));
  for (const side of ["before", "left", "right"]) find(side).replaceChildren(...pair[side].map(turn));
  const answers = find("answers");
  answers.checked = false;
  answers.closest("p").hidden = ![...pair.left, ...pair.right].some(([role]) => role === "assistant");
  answers.closest("p").nextElementSibling.hidden = answers.closest("p").hidden;
  toggleAnswers();
  find("count").focus();
}

function toggleAnswers() {
  document.querySelector(".sides").classList.toggle("hides", !find("answers").checked);
}

// Noted even if they were hidden again.
let saw = false;
find("answers").addEventListener("change", () => { saw ||= find("answers").checked; toggleAnswers(); });

async function ask(name, body) {
  if (busy) return;
  busy = true;
  const rater = find("rater").value.trim();
  try {
    let refused = null;
    const next = await call(name, { rater, ...body }).catch((error) => {
      if (error.status !== 409) throw error;
      refused = error; // this pair is not to be rated (any more): another one is
      return call("pair", { rater });
    });
    show(next);
    saw = false;
    showError(refused);
  } catch (error) {
    showError(error);
  } finally {
    busy = false;
  }
}

const choose = (side) => now?.pair && ask("rate", { test: now.test, id: now.id, side, answers: saw });
find("who").addEventListener("submit", (event) => { event.preventDefault(); ask("pair", {}); });
find("choose-left").addEventListener("click", () => choose("left"));
find("choose-right").addEventListener("click", () => choose("right"));
document.addEventListener("keydown", (event) => {
  if (find("test").hidden || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.repeat) return;
  if (event.key === "ArrowLeft") choose("left");
  else if (event.key === "ArrowRight") choose("right");
  else if (event.key.toLowerCase() === "a") find("answers").click();
  else return;
  event.preventDefault();
});
