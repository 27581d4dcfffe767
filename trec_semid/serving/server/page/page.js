"use strict";
// All text of the server goes in as text, never as HTML.
const at = (id) => document.getElementById(id);
const past = [];

const titleOf = (readable, item) => readable.title || Object.values(readable)[0] || item;

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (at("secret").value) headers.Authorization = `Bearer ${at("secret").value}`;
  const sent = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const answer = await fetch(path, sent);
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.message || answer.statusText);
  return content;
}

function line(words, more, name, act) {
  const row = document.createElement("li");
  row.append(words);
  if (more) {
    const small = document.createElement("small");
    small.textContent = more;
    row.append(small);
  }
  if (act) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.setAttribute("aria-label", `${name}: ${words}`);
    button.addEventListener("click", act);
    row.append(button);
  }
  return row;
}

function tell(words, isBad) {
  at("said").textContent = words;
  at("said").className = isBad ? "bad" : "";
}

function showHistory() {
  at("history").replaceChildren(
    ...past.map((each, place) =>
      line(each.title, each.item, "remove", () => { past.splice(place, 1); showHistory(); })));
}

function add(item, title) {
  past.push({ item, title });
  at("found").replaceChildren();
  at("words").value = "";
  showHistory();
}

async function find(event) {
  event.preventDefault();
  const words = at("words").value.trim();
  if (!words) return;
  try {
    const found = await ask(`v1/items?${new URLSearchParams({ words, n: 10 })}`);
    at("found").replaceChildren(...found.items.map((each) => {
      const title = titleOf(each.readable, each.item);
      return line(title, each.item, "add", () => add(each.item, title));
    }));
    // An id does where the bundle has no titles.
    if (!found.items.length) at("found").replaceChildren(line("no title has these words", "", "add it as an id", () => add(words, words)));
    tell("", false);
  } catch (error) { tell(error.message, true); }
}

async function titleOfItem(item) {
  try {
    return titleOf((await ask(`v1/items/${encodeURIComponent(item)}`)).readable, item);
  } catch { return item; }
}

const BASES = { history: "from this history", stored: "from what the bundle knows of this user", popularity: "what is popular: nothing is known of this user" };

async function list(event) {
  event.preventDefault();
  const body = { n: Number(at("n").value) || 10 };
  if (past.length) body.history = past.map((each) => each.item);
  if (at("user").value.trim()) body.user = at("user").value.trim();
  try {
    const answer = await ask("v1/retrieve", body);
    const titles = await Promise.all(answer.items.map(titleOfItem));
    at("list").replaceChildren(...titles.map((title, place) =>
      line(title, `${answer.items[place]} · ${answer.scores[place].toPrecision(4)}`)));
    const unknown = answer.unknown ? `; ${answer.unknown} ids are not in the bundle` : "";
    tell(`${BASES[answer.basis]}${unknown}; version ${answer.version}`, false);
  } catch (error) { at("list").replaceChildren(); tell(error.message, true); }
}

async function showState() {
  const ready = await (await fetch("readyz")).json();
  at("state").textContent = ready.ready ? `Bundle ${ready.version} is served.` : "No bundle is open yet.";
}

at("search").addEventListener("submit", find);
at("ask").addEventListener("submit", list);
showState();
