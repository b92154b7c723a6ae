// What both pages share. Text from models and logs becomes text nodes, never markup.

let key = "";

export class Refused extends Error {}

// The answer of a call of this server. A key is kept in memory only, and sent nowhere else.
export async function call(name, body = {}, signal = null) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(`/playground/${name}`, { method: "POST", headers, signal, body: JSON.stringify(body) });
  } catch {
    if (signal?.aborted) throw new Refused("Stopped.");
    throw new Refused("The server does not answer. Is it still running?");
  }
  if (answer.status === 401) {
    key = await askKey(key ? "This is not its key. Try again." : "This server needs its key.");
    return call(name, body, signal);
  }
  const content = await answer.json().catch(() => ({}));
  if (answer.ok) return content;
  const refused = new Refused(content.error?.message ?? `The server answered ${answer.status}.`);
  throw Object.assign(refused, { status: answer.status });
}

function askKey(why) {
  const field = el("input", { type: "password", id: "key", autocomplete: "off" });
  const form = el("form", { method: "dialog" },
    el("label", { htmlFor: "key" }, why), field, el("button", { className: "main" }, "Use this key"));
  const dialog = el("dialog", {}, form);
  dialog.setAttribute("aria-label", "Key of the server");
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      if (field.value) resolve(field.value);
      else reject(new Refused("Without its key this server does not answer. Load the page again to give it."));
    });
  });
}

// An element with these properties and children.
export function el(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export const find = (id) => document.getElementById(id);

// The characters that show.formats writes by their numbers: they are unseen, or turn text around.
const HIDDEN = new RegExp("([\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u00ad\\u061c\\u115f\\u1160\\u180e\\u200b\\u200e\\u200f"
  + "\\u2028-\\u202e\\u2060-\\u206f\\u3164\\ufeff\\uffa0\\ufff9-\\ufffb\\u{e0000}-\\u{e007f}])\\1*", "gu");
const MOST = 20_000;

// A text as nodes, its hidden characters by their numbers.
export function visible(text) {
  const lines = String(text).toWellFormed().replace(/\r\n?/g, "\n");
  const shown = lines.length > MOST ? `${lines.slice(0, MOST)} … (${lines.length} characters)` : lines;
  const made = document.createDocumentFragment();
  let last = 0;
  for (const run of shown.matchAll(HIDDEN)) {
    const point = run[1].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    const count = run[0].length / run[1].length;
    made.append(shown.slice(last, run.index));
    made.append(el("span", { className: "odd" }, `U+${point}${count > 1 ? ` ×${count}` : ""}`));
    last = run.index + run[0].length;
  }
  made.append(shown.slice(last));
  return made;
}

// A text that somebody said, with its own direction.
export function quoted(text, kind = "") {
  const made = el("p", { className: `text ${kind}`, dir: "auto" });
  made.append(visible(text));
  return made;
}

export function showError(error) {
  find("error").replaceChildren(visible(error?.message ?? ""));
  find("error").hidden = !error;
  if (error && !(error instanceof Refused)) throw error;
}
