// The playground: a conversation of items, each what one side said, and who says the next one.
import { Refused, call, el, find, quoted, showError, visible } from "/shared.js";

const STOPS = {
  end: "ends the conversation",
  guard: "wrote no draft that passes the guard",
  context: "has no room left in the model's context length",
  max_turns: "reached the limit on turns",
  solved: "has a solved task",
  error: "failed",
};
const MOST_TURNS = 20; // of the user, when both play on by themselves
const SHORTCUTS = { KeyR: "again", KeyZ: "back", KeyS: "save", KeyN: "new" }; // with Alt
const SIDES = ["user", "against"];

let server; // what it can do
let id = "new";
let version = ""; // of the saved conversation: another page may save a newer one
let session = ""; // of a bot, which may remember what was said to it and what it said
// An item is {role, replies, chosen}: replies by side; that of the chosen side is in the conversation.
let items = [];
let busy = false;
let playing = false;
let waiting = new AbortController(); // of the turns that models are writing

// --- the conversation -------------------------------------------------------------------------

const chosen = (item) => item.replies[item.chosen];
const last = () => items.at(-1);
const stop = () => (last() ? chosen(last()).stop : null);
const nextRole = () => (last()?.role === "user" ? "assistant" : "user");
const seat = () => document.querySelector("[name=seat]:checked").value;
const isMine = () => nextRole() === seat();
const isModels = (item) => item && !item.replies.you;

// What a user's turns were made with stays theirs, whatever the fields say when they are saved.
function goal(before, isSaved) {
  const now = { intent: find("intent").value.trim(), profile: find("profile").value.trim() };
  return (isSaved && before.findLast((each) => each.told)?.told) || now;
}

function record(before = items, isSaved = false) {
  const turns = [];
  const { intent, profile } = goal(before, isSaved);
  const meta = { users: SIDES.filter((side) => server.names[side]).map((side) => server.names[side]) };
  if (server.names.assistant) meta.assistant = server.names.assistant;
  if (profile) meta.condition = profile;
  const ending = before.length ? chosen(before.at(-1)).stop : null;
  for (const item of before) {
    const reply = chosen(item);
    const others = Object.fromEntries(Object.entries(item.replies).filter(([side, one]) => side !== item.chosen && !one.error));
    const own = { ...reply.meta };
    own.by = item.chosen === "you" ? "person" : reply.by;
    if (Object.keys(others).length) own.others = others;
    if (reply.text) turns.push({ role: item.role, text: reply.text, meta: own });
    else meta.end_meta = own;
  }
  const made = { id, turns, meta };
  if (intent) made.intent = intent;
  if (ending) made.stop = ending;
  if (ending === "end" && turns.at(-1)?.role !== "user") made.ended = true;
  return made;
}

function read(saved) {
  id = saved.id;
  session = newSession();
  find("intent").value = saved.intent ?? "";
  find("profile").value = saved.meta?.condition ?? "";
  items = saved.turns.map(({ role, text, meta = {} }) => item(role, text, null, meta));
  if (saved.stop && saved.stop !== "max_turns") {
    const ends = saved.meta?.end_meta;
    if (ends || !items.length) items.push(item(nextRole(), "", saved.stop, ends ?? {}));
    else chosen(last()).stop = saved.stop;
  }
  for (const each of items) if (each.role === "user" && each.chosen !== "you") each.told = goal(items, false);
}

function item(role, text, ending, { by, others: given, ...meta }) {
  const others = {};
  for (const side of SIDES) if (typeof given?.[side]?.text === "string") others[side] = { stop: null, ...given[side], meta: given[side].meta ?? {} };
  const side = by === "person" ? "you" : role === "assistant" ? "assistant" : "user" in others ? "against" : "user";
  return { role, chosen: side, replies: { ...others, [side]: { text, stop: ending, meta, by } } };
}

// --- the next turn ----------------------------------------------------------------------------

const number = (field) => (find(field).value === "" ? null : Number(find(field).value));

async function reply(side, before) {
  const asked = { conversation: record(before), speaker: side, seed: number("seed") ?? 0, session };
  if (side !== "assistant") {
    const guard = find("guard").value.trim();
    Object.assign(asked, {
      temperature: number("temperature"),
      end_threshold: number("threshold"),
      guard: guard === "" ? null : guard === "none" ? "" : guard,
    });
  }
  return call("ask", asked, waiting.signal);
}

// Let the models whose turn it is speak.
async function takeTurn() {
  const role = nextRole();
  const sides = role === "assistant" ? ["assistant"] : SIDES.filter((side) => server.names[side]);
  const before = items;
  const told = role === "user" ? goal(before, false) : null;
  // A turn that one of two users took, and that may have been paid for, stays if the other failed.
  const failed = {};
  const found = await Promise.all(sides.map((side) => reply(side, before).catch((error) => {
    failed[side] = error;
    return { text: "", stop: "error", meta: {}, error: error.message };
  })));
  const spoke = sides.find((side) => !failed[side]);
  if (!spoke) {
    if (role === "assistant") session = newSession(); // a bot may have heard what it did not answer
    throw failed[sides[0]];
  }
  if (failed.user || waiting.signal.aborted) playing = false;
  const completed = found.find(({ intent }) => intent);
  if (completed) find("intent").value = told.intent = completed.intent;
  items = [...before, { role, told, chosen: spoke, replies: Object.fromEntries(sides.map((side, i) => [side, { ...found[i], by: server.names[side] }])) }];
}

// Run something that changes the conversation; nothing else may meanwhile.
async function change(doing, what) {
  if (busy) return;
  busy = true;
  waiting = new AbortController();
  showError(null);
  show(doing);
  try {
    await what();
  } catch (error) {
    playing = false;
    showError(error);
  } finally {
    busy = false;
    showAll();
  }
}

const goesOn = () => !stop() && !isMine();

async function speak() {
  if (!goesOn()) return;
  await change(`The ${nextRole()} is writing …`, takeTurn);
}

async function play() {
  if (busy && !playing) return; // `speak` would come back at once, for ever
  playing = !playing;
  while (playing && goesOn() && items.filter(({ role }) => role === "user").length < MOST_TURNS) await speak();
  playing = false;
  show();
}

async function drawAgain() {
  await change("Drawing the turn again …", async () => {
    const kept = items;
    const keptSession = session;
    const before = last();
    find("seed").value = (number("seed") ?? 0) + 1;
    dropLast();
    try {
      await takeTurn();
    } catch (error) {
      [items, session] = [kept, keptSession];
      throw error;
    }
    // Each answer may have been paid for: where one of two users failed, its turn of before stays.
    const drawn = last();
    const failed = SIDES.filter((side) => drawn.replies[side]?.error);
    if (!failed.length) return;
    const { error } = drawn.replies[failed[0]];
    for (const side of failed) {
      const earlier = before.replies[side];
      if (earlier && !earlier.error) drawn.replies[side] = earlier;
    }
    if (failed.includes(before.chosen)) drawn.chosen = before.chosen;
    throw new Refused(error);
  });
}

async function say() {
  const text = find("text").value.trim();
  if (!text || busy || stop() || !isMine()) return;
  items = [...items, { role: nextRole(), chosen: "you", replies: { you: { text, stop: null, meta: {} } } }];
  find("text").value = "";
  await speak();
}

// --- what is shown ----------------------------------------------------------------------------

// What the model sees takes a pass of the model, so it is shown anew only where it is open.
function showAll() {
  show();
  if (find("view").open) look();
}

function show(status = "") {
  find("goal").replaceChildren(visible(items.length ? find("intent").value : ""));
  const turns = find("turns");
  // Turns that are there stay, so that a screen reader says only what is new.
  const made = items.map(drawnOnce);
  for (const [place, node] of made.entries()) {
    const there = turns.children[place];
    if (!there) turns.append(node);
    else if (there !== node) there.replaceWith(node);
  }
  while (turns.children.length > made.length) turns.lastChild.remove();
  turns.setAttribute("aria-busy", busy);
  find("status").textContent = status || hint();
  const mine = isMine() && !stop();
  find("mine").hidden = !mine;
  find("text-label").textContent = `What you say as the ${seat() === "user" ? "user" : "assistant"}`;
  find("send").hidden = !mine;
  find("next").hidden = mine;
  find("next").textContent = items.length || seat() === "watch" ? "Next turn" : "Let the user begin";
  find("stop").hidden = !busy;
  find("play").hidden = seat() !== "watch";
  find("play").textContent = playing ? "Pause" : "Play on";
  find("play").setAttribute("aria-pressed", playing);
  for (const [name, can] of Object.entries({
    send: mine, next: goesOn() && !playing, play: goesOn() || playing, again: isModels(last()) && !playing,
    back: items.length && !playing, save: items.length && !playing,
  })) setDisabled(find(name), !can || (busy && !(playing && name === "play")));
  for (const button of [find("new"), find("load"), ...turns.querySelectorAll("button")]) setDisabled(button, busy || playing);
}

// A button that has the focus keeps it.
function setDisabled(button, disabled) {
  const hadFocus = document.activeElement === button;
  button.disabled = disabled && !(busy && hadFocus);
  button.setAttribute("aria-disabled", disabled);
}

function hint() {
  if (stop()) return "The conversation is over. Draw the turn again, take it back, or save it.";
  if (!items.length && seat() === "assistant") return "You are the assistant. Say in the settings what the user wants, and let the user begin.";
  if (!items.length && seat() === "watch") return "You watch. The user speaks first.";
  if (!items.length && seat() === "user") return "You are the user. What do you want from the assistant?";
  return "";
}

const nodes = new WeakMap();

// The node of an item, drawn anew only if something about it changed.
function drawnOnce(each, place) {
  const look = `${each.chosen} ${place === items.length - 1}`;
  if (nodes.get(each)?.look !== look) nodes.set(each, { look, node: drawn(each, place) });
  return nodes.get(each).node;
}

function drawn({ role, replies, chosen: side }, place) {
  const sides = Object.keys(replies).sort((a, b) => SIDES.indexOf(a) - SIDES.indexOf(b));
  const parts = sides.map((each) => said(role, each, replies[each], each === side || sides.length === 1, place));
  return el("li", { className: `turn ${role}` }, sides.length > 1 ? el("div", { className: "columns" }, ...parts) : parts[0]);
}

function said(role, side, { text, stop: ending, meta, error, by }, isChosen, place) {
  const label = el("div", { className: "label" }, el("b", {}, role === "user" ? "User" : "Assistant"));
  label.append(el("span", {}, visible(side === "you" ? "you" : by ?? side)));
  const marks = [meta.cut && "cut at the token limit", meta.violates && `kept, though ${list(meta.violates)}`, meta.stub && "a stub"];
  for (const mark of marks) if (mark) label.append(el("span", { className: "badge" }, visible(mark)));
  if (typeof meta.p_end === "number") label.append(chance(meta.p_end));
  const made = el("div", { className: `said${isChosen ? "" : " other"}` }, label);
  if (text) made.append(quoted(text));
  if (error) made.append(quoted(error, "end"));
  else if (ending) made.append(el("p", { className: "text end" }, `The ${role} ${STOPS[ending] ?? ending}.`));
  const rejected = Array.isArray(meta.rejected) ? meta.rejected.filter((draft) => draft?.why) : [];
  if (rejected.length) made.append(drafts(rejected));
  if (!isChosen && place === items.length - 1 && !error) {
    const choose = () => {
      if (busy) return; // a model answers the other one
      items[place].chosen = side;
      show();
      find("text").focus();
    };
    made.append(el("button", { type: "button", onclick: choose }, "Go on with this one"));
  }
  return made;
}

const list = (reasons) => (Array.isArray(reasons) ? reasons.join(", ") : String(reasons));

const probability = (p) => (p > 0 && p < 0.0005 ? "<0.001" : p.toFixed(3));

function chance(p) {
  const bar = el("meter", { min: 0, max: 1, value: p });
  bar.setAttribute("aria-hidden", "true");
  return el("span", { className: "chance", title: "The model's probability that the user ends the conversation here" }, `P(end) ${probability(p)}`, bar);
}

function drafts(rejected) {
  const noun = rejected.length === 1 ? "rejected draft" : "rejected drafts";
  const lines = rejected.map(({ text, why }) => el("li", { dir: "auto" }, visible(text || "(empty)"), el("i", {}, visible(` – ${list(why)}`))));
  return el("details", {}, el("summary", {}, `${rejected.length} ${noun}`), el("ol", { className: "drafts" }, ...lines));
}

// --- what the model sees ----------------------------------------------------------------------

async function look(side = server.views[0]) {
  const body = find("view-body");
  body.replaceChildren(el("p", { className: "hint" }, "Reading …"));
  try {
    const blocks = await call("view", { conversation: record(), speaker: side });
    body.replaceChildren(...blocks.map(block));
  } catch (error) {
    body.replaceChildren(el("p", { className: "hint" }, visible(error.message)));
  }
}

function block(given) {
  if (given.blocks) return el("div", {}, el("h3", {}, visible(given.title)), ...given.blocks.map(block));
  if (given.tokens) {
    const made = el("div", { className: "tokens", tabIndex: 0 }, ...given.tokens.map(token));
    made.setAttribute("role", "region");
    made.setAttribute("aria-label", "Tokens");
    return made;
  }
  if (given.rows) {
    const head = el("tr", {}, ...given.head.map((name) => el("th", { scope: "col" }, name)));
    const rows = given.rows.map((cells) => el("tr", {}, ...cells.map((cell) => el("td", {}, visible(plain(cell))))));
    return el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows));
  }
  return el("p", { className: "hint" }, visible(plain(given.line)));
}

// A token shows its line breaks, and breaks the line too.
function token({ text, kind }) {
  const made = el("span", { className: `token ${kind}`, title: kind });
  made.append(visible(text.replaceAll("\n", "⏎\n")));
  return made;
}

function plain(line) {
  if (typeof line === "string") return line;
  if (typeof line.value === "number") return line.digits === 3 ? probability(line.value) : line.value.toFixed(line.digits);
  return line.text ?? "";
}

// --- saving -----------------------------------------------------------------------------------

async function listSaved() {
  const talks = await call("saved");
  const label = (talk) => visible(`${talk.intent || "no intent"} (${talk.turns} turns)`).textContent; // an option is text alone
  const options = talks.map((talk) => el("option", { value: talk.id }, label(talk)));
  find("saved").replaceChildren(...(options.length ? options : [el("option", { value: "" }, "none yet")]));
}

async function save() {
  await change("Saving …", async () => {
    const done = await call("save", { conversation: record(items, true), replaces: version });
    ({ id, version } = done);
    await listSaved();
    setTimeout(() => { find("status").textContent = `Saved in ${done.folder} as ${done.id}.`; });
  });
}

async function load() {
  if (!find("saved").value) return;
  await change("Reading …", async () => {
    const found = await call("load", { id: find("saved").value });
    read(found.conversation);
    version = found.version;
  });
  focusNext();
}

function focusNext() {
  const first = find("send").hidden ? find("next") : find("text");
  (first.disabled ? find("again") : first).focus();
}

// --- the page ---------------------------------------------------------------------------------

const newSession = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

function dropLast() {
  if (last().role === "assistant") session = newSession();
  items = items.slice(0, -1);
}

function takeBack() {
  if (busy) return; // the button may have the focus
  dropLast();
  showAll();
}

function begin() {
  if (busy) return;
  id = "new";
  version = "";
  session = newSession();
  items = [];
  showAll();
}

function introduce() {
  const { names, sampling } = server;
  const users = SIDES.filter((side) => names[side]).map((side) => names[side]).join(" and ");
  find("who").replaceChildren(visible(`Simulated user: ${users}${names.assistant ? ` · assistant: ${names.assistant}` : ""}`));
  find("intent").value = server.intent;
  const own = sampling.user ?? {};
  find("temperature").placeholder = own.temperature ?? "";
  find("threshold").placeholder = own.end_threshold ?? "sampled";
  find("guard").placeholder = server.guard || "none";
  for (const choice of document.querySelectorAll("[name=seat]")) choice.disabled = choice.value !== "assistant" && !names.assistant;
  find("no-assistant").hidden = Boolean(names.assistant);
  find("view").hidden = !server.views.length;
  find("view-who").hidden = server.views.length < 2;
  find("view-who").replaceChildren(...server.views.map((side) => el("button", { type: "button", onclick: () => look(side) }, names[side])));
}

function listen() {
  find("composer").addEventListener("submit", (event) => { event.preventDefault(); say().then(focusNext); });
  find("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    find("composer").requestSubmit();
  });
  find("next").addEventListener("click", () => speak().then(focusNext));
  find("play").addEventListener("click", play);
  find("stop").addEventListener("click", () => { waiting.abort(); focusNext(); });
  find("again").addEventListener("click", drawAgain);
  find("back").addEventListener("click", takeBack);
  find("save").addEventListener("click", save);
  find("new").addEventListener("click", () => { begin(); focusNext(); });
  find("load").addEventListener("click", load);
  find("view").addEventListener("toggle", () => { if (find("view").open) look(); });
  document.addEventListener("keydown", (event) => {
    // A key that is held counts once: each turn may be paid.
    if (event.repeat && event.key === "Enter" && event.target.tagName === "BUTTON") event.preventDefault();
    const button = event.altKey && !event.ctrlKey && !event.metaKey && SHORTCUTS[event.code];
    if (!button) return;
    event.preventDefault();
    if (!event.repeat) find(button).click();
  });
  find("form").addEventListener("submit", (event) => event.preventDefault());
  for (const choice of document.querySelectorAll("[name=seat]")) choice.addEventListener("change", () => show());
}

async function start() {
  if (matchMedia("(max-width: 56rem)").matches) find("settings").open = false;
  try {
    server = await call("state");
    introduce();
    listen();
    begin();
    await listSaved();
  } catch (error) {
    showError(error);
  }
}

start();
