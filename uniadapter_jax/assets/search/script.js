// Names of files and captions are hostile text: they enter the page as textContent alone.
"use strict";

const at = (id) => document.getElementById(id);
const STEP = 24;
let info = { k: { most: STEP }, clips: 0, upload_bytes: Infinity, rerank: 0, ask: false };
let query = null; // {words} or {file}
let shown = 0; // results that were asked for
let newest = null; // the answer that the grid shows
let running = null; // AbortController of the search under way
let playing = null; // the result in the player
let opener = null; // what had the focus before the player opened

// Characters that act instead of showing: controls, marks of direction, halves of pairs.
const ACTING = /[\u0000-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]|\p{Surrogate}/gu;

function safe(text) {
  return String(text).replace(ACTING, "\ufffd");
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = safe(text);
  return made;
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(whole / 60) % 60;
  const hours = Math.floor(whole / 3600);
  return (hours ? `${hours}:${two(minutes)}` : minutes) + `:${two(whole % 60)}`;
}

function times(hit) {
  return hit.start === null ? "picture" : `${clock(hit.start)} \u2013 ${clock(hit.end)}`;
}

function tell(id, text) {
  at(id).textContent = text;
  at(id).hidden = !text && id !== "note";
}

async function answer(response) {
  let content = {};
  try {
    content = await response.json();
  } catch {
    // It may be no JSON, where the server is overloaded.
  }
  if (!response.ok) throw new Error(content.error || `The server answers ${response.status}; try again.`);
  return content;
}

function card(hit) {
  const item = element("li");
  const button = element("button", "card");
  button.type = "button";
  const thumb = element("span", "thumb");
  const picture = element("img");
  picture.alt = "";
  picture.loading = "lazy";
  picture.addEventListener("error", () => thumb.replaceChildren("no preview"));
  picture.src = `/api/item/${encodeURIComponent(hit.id)}/thumb`;
  thumb.append(picture);
  const facts = element("span", "facts");
  facts.append(element("span", "when", times(hit)));
  const score = element("span", "score", hit.score === null ? "\u2013" : hit.score.toFixed(3));
  score.title = "score";
  facts.append(score);
  const name = element("span", "name", hit.name);
  name.dir = "auto";
  button.append(thumb, facts, name);
  button.addEventListener("click", () => play(hit, button));
  item.append(button);
  return item;
}

function asked() {
  if (query.file) return fetch(`/api/search?k=${shown}`, { method: "POST", body: query.file, signal: running.signal });
  const words = encodeURIComponent(query.words);
  const again = query.again ? `&rerank=${matched()}` : "";
  return fetch(`/api/search?q=${words}&k=${shown}${again}`, { signal: running.signal });
}

function matched() {
  return Math.max(shown, info.rerank);
}

async function search(count) {
  running?.abort();
  const mine = (running = new AbortController());
  shown = count;
  document.body.classList.add("busy");
  at("grid").setAttribute("aria-busy", "true");
  tell("error", "");
  tell("note", "Searching \u2026");
  newest = null;
  offerMore();
  try {
    show(await answer(await asked()));
  } catch (error) {
    if (mine.signal.aborted) return;
    at("grid").replaceChildren();
    forgetPicture();
    tell("note", "");
    const lost = error instanceof TypeError;
    tell("error", lost ? "The server does not answer; it may have been stopped." : safe(error.message));
  }
  if (running !== mine) return;
  document.body.classList.remove("busy");
  at("grid").removeAttribute("aria-busy");
}

function show(found) {
  const { hits, clips, seconds } = found;
  const grid = at("grid");
  const seen = grid.dataset.query === label() ? grid.children.length : 0;
  grid.dataset.query = label();
  grid.replaceChildren(...hits.map(card));
  if (seen && seen < hits.length) grid.children[seen].firstChild.focus();
  const what = query.file ? "the picture" : `\u201c${safe(query.words)}\u201d`;
  const best = hits.length ? `The best ${hits.length} of ${clips} clips` : "No clips were found";
  const again = query.again ? `, the best ${Math.min(matched(), clips)} matched again` : "";
  const how = `compared one by one${again} in ${seconds.toFixed(2)} s.`;
  tell("note", clips ? `${best} for ${what}, ${how}` : "The index has no clips.");
  newest = found;
  offerMore();
}

// Also when the server has said how many can be shown, which may be after the first answer.
function offerMore() {
  const all = newest && Math.min(newest.clips, info.k.most);
  at("more").hidden = !newest || newest.hits.length < shown || newest.hits.length >= all;
}

function label() {
  return query.file ? `picture ${query.number}` : `words ${query.again} ${query.words}`;
}

function searchWords(words, remember) {
  if (!words.trim()) {
    tell("error", "Say in words what to look for, or choose a picture.");
    at("words").focus();
    return;
  }
  forgetPicture();
  query = { words, again: info.rerank > 0 && at("again").checked };
  document.title = `${safe(words)} \u2013 Search`;
  if (remember) history.pushState(null, "", `/?q=${encodeURIComponent(words)}`);
  search(STEP);
}

let pictures = 0;
function searchPicture(file) {
  if (!file) return;
  if (file.size > info.upload_bytes) {
    tell("error", `The picture is larger than ${Math.floor(info.upload_bytes / 2 ** 20)} MB.`);
    return;
  }
  forgetPicture();
  query = { file, number: ++pictures };
  at("words").value = "";
  at("shown").src = URL.createObjectURL(file);
  at("query").hidden = false;
  document.title = "A picture \u2013 Search";
  search(STEP);
}

function forgetPicture() {
  if (at("shown").src) URL.revokeObjectURL(at("shown").src);
  at("shown").removeAttribute("src");
  at("query").hidden = true;
}

function begin() {
  running?.abort();
  running = null;
  query = null;
  forgetPicture();
  document.body.classList.remove("busy");
  at("grid").replaceChildren();
  newest = null;
  offerMore();
  tell("error", "");
  tell("note", "Search by words, or drop, paste or choose a picture.");
  document.title = "Search";
}

function play(hit, button) {
  opener = button;
  at("title").textContent = safe(hit.name);
  tell("trouble", "");
  at("times").textContent = times(hit);
  at("asking").hidden = !info.ask;
  at("question").value = "";
  tell("answer", "");
  playing = hit;
  const source = `/media/${encodeURIComponent(hit.id)}`;
  const film = hit.kind === "video";
  const made = element(film ? "video" : "img");
  made.addEventListener("error", () => explain(source));
  if (film) {
    made.controls = made.autoplay = made.playsInline = true;
    made.setAttribute("aria-label", "The clip");
    made.addEventListener("loadedmetadata", () => {
      if (!made.videoWidth) tell("trouble", "This browser cannot show the pictures of this film, only play its sound.");
    });
    made.src = `${source}#t=${hit.start}`;
  } else {
    made.alt = safe(hit.name);
    made.src = source;
  }
  at("stage").replaceChildren(made);
  at("player").showModal();
}

async function ask() {
  const [hit, words] = [playing, at("question").value];
  if (!words.trim()) return;
  tell("answer", "Looking \u2026");
  let said;
  try {
    const address = `/api/item/${encodeURIComponent(hit.id)}/answer?q=${encodeURIComponent(words)}`;
    said = (await answer(await fetch(address))).answer || "No answer.";
  } catch (error) {
    said = error instanceof TypeError ? "The server does not answer; it may have been stopped." : error.message;
  }
  if (playing === hit) tell("answer", safe(said));
}

async function explain(source) {
  try {
    const response = await fetch(source, { headers: { Range: "bytes=0-0" } });
    if (!response.ok) await answer(response);
    tell("trouble", "This browser cannot show files of this kind.");
  } catch (error) {
    tell("trouble", safe(error.message));
  }
}

function closed() {
  const film = at("stage").firstChild;
  if (film?.pause) {
    film.pause();
    film.removeAttribute("src"); // ends the download
    film.load();
  }
  at("stage").replaceChildren();
  playing = null;
  opener?.focus();
}

function fromAddress() {
  const words = new URLSearchParams(location.search).get("q") || "";
  at("words").value = words;
  if (words.trim()) searchWords(words, false);
  else begin();
}

async function start() {
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    searchWords(at("words").value, true);
  });
  at("choose").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", () => {
    searchPicture(at("file").files[0]);
    at("file").value = "";
  });
  at("forget").addEventListener("click", () => {
    begin();
    at("words").focus();
  });
  at("again").addEventListener("change", () => {
    if (query?.words) searchWords(query.words, false);
  });
  at("asking").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  at("more").addEventListener("click", () => search(Math.min(shown + STEP, info.k.most)));
  at("close").addEventListener("click", () => at("player").close());
  at("player").addEventListener("close", closed);
  at("player").addEventListener("click", (event) => {
    if (event.target === at("player")) at("player").close();
  });
  document.addEventListener("paste", (event) => searchPicture(event.clipboardData.files[0]));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    at("drop").hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) at("drop").hidden = true;
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    at("drop").hidden = true;
    searchPicture(event.dataTransfer.files[0]);
  });
  addEventListener("popstate", fromAddress);
  fromAddress();
  try {
    info = await answer(await fetch("/api/info"));
    offerMore();
    at("folder").textContent = safe(info.folder);
    at("matching").hidden = !info.rerank;
    const by = info.adapter === "none" ? info.model : `${info.model} with ${info.adapter}`;
    const windows = info.window ? `, also in windows of ${info.window[0]} s` : "";
    const missing = info.unfinished ? " The index is unfinished, so clips are missing." : "";
    const told = `${info.clips} clips of ${info.files} files${windows}; found by ${by}.${missing}`;
    tell("about", safe(told));
  } catch {
    tell("error", "The server does not answer; it may have been stopped.");
  }
}

start();
