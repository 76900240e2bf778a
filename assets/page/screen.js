// The screen: a view of one job (props.value, made by app.py) shown in place, so that nothing jumps or flickers.
const cv = window.cv;
cv.words = props.words;
cv.shareBase = props.share_base;

const samples = props.gallery || [];
const find = (selector) => element.querySelector(selector);
const stage = find(".cv-stage");
const sample = find(".cv-sample");
const still = find(".cv-still");
const quad = find(".cv-quad");
const drafts = find(".cv-drafts");
const shareBox = find(".cv-share");
const films = [...element.querySelectorAll(".cv-film")];
const strip = find(".cv-strip");
const cells = find(".cv-cells");
const head = find(".cv-head");
const GRID = 32; // moments of the finest clip; a cell's place on it never changes, so cells can stay while others join
const PATIENCE = 3; // a film that does not load is asked for so many times more

let view = null;
let shown = null; // name of the film on the stage
let film = null;
let unfollow = null; // ends what is told of the job on the stage, while it is active
let lost = false;
let meeting = false; // whether the server that answers again is being asked who it is
let misses = 0; // times in a row that the browser could not load the film
let told = null; // the job that was told to stop, and when: said at once, but not part of what the server says of it
let example = -1; // which clip of the gallery stands in for a job, while there is none

const many = () => view && view.drafts > 1; // strips to choose from, instead of one film
const active = () => view && (view.status === "queued" || view.status === "running");
const believed = () => told && view && told.id === view.id && performance.now() - told.at < 4000;
const stopping = () => (active() && believed() ? "now" : view && view.stopping);

// The strip: one cell per frame. Keyframes come one by one; in-betweens slide in between them.

function cellsWanted() {
  if (view.strip) {
    const url = cv.media(view.id, view.strip);
    const partial = view.status !== "done" && view.count < 5;
    const whole = partial ? 5 : view.count;
    return Array.from({ length: whole }, (_, index) => ({
      place: Math.round((index * GRID) / (whole - 1)),
      key: Math.round((index * GRID) / (whole - 1)) % 8 === 0,
      picture: index < view.count ? url : "",
      sprite: [index, view.count],
      state: index < view.count ? "done" : "",
    }));
  }
  return Array.from({ length: 5 }, (_, index) => {
    const painting = view.painting && view.painting[0] === index;
    const name = view.keyframes[index];
    return {
      place: index * 8,
      key: true,
      picture: name ? cv.media(view.id, name) : painting ? view.painting[1] : "",
      sprite: null,
      state: name ? "done" : painting || (view.status === "running" && index === view.keyframes.length) ? "painting" : "",
    };
  });
}

function drawCells() {
  const wanted = view ? cellsWanted() : emptyCells();
  const kept = new Map([...cells.children].map((cell) => [Number(cell.dataset.place), cell]));
  const fresh = cells.dataset.job !== (view ? view.id : "");
  cells.dataset.job = view ? view.id : "";
  cells.dataset.count = wanted.length;
  let before = cells.firstElementChild;
  for (const want of wanted) {
    let cell = kept.get(want.place);
    kept.delete(want.place);
    if (!cell) {
      cell = document.createElement("div");
      cell.dataset.place = want.place;
      cell.append(document.createElement("b"));
      if (!fresh) cell.classList.add("cv-new");
      cells.insertBefore(cell, [...cells.children].find((other) => Number(other.dataset.place) > want.place) || null);
    }
    cell.classList.toggle("cv-key", want.key);
    cell.dataset.state = want.state;
    const picture = cell.firstElementChild;
    const image = want.picture ? `url("${want.picture}")` : "none";
    if (picture.dataset.image !== image) {
      picture.dataset.image = image;
      picture.style.backgroundImage = image;
    }
    const [index, count] = want.sprite || [0, 1];
    picture.style.backgroundSize = `${count * 100}% 100%`;
    picture.style.backgroundPosition = count > 1 ? `${(index * 100) / (count - 1)}% 0` : "0 0";
  }
  for (const cell of kept.values()) cell.remove();
}

const emptyCells = () =>
  Array.from({ length: 5 }, (_, index) => ({ place: index * 8, key: true, picture: "", sprite: null, state: "" }));

// Drafts: a strip of five keyframes each, with a box to tick once they are complete.

function drawDrafts() {
  strip.hidden = many();
  drafts.hidden = !many();
  find(".cv-numbers").hidden = !many() || (!view.video && !view.keyframes.length && !view.painting);
  if (!many()) return drafts.querySelectorAll("label").forEach((row) => row.remove());
  if (drafts.dataset.job !== view.id) {
    drafts.dataset.job = view.id;
    drafts.querySelectorAll("label").forEach((row) => row.remove());
    drafts.append(...view.seeds.map(draftRow));
  }
  drafts.querySelectorAll("label").forEach((row, draft) => {
    const box = row.querySelector("input");
    box.disabled = view.status !== "done";
    box.setAttribute("aria-label", cv.say("draft", { index: draft + 1, seed: view.seeds[draft] }));
    row.title = box.getAttribute("aria-label");
    row.querySelectorAll("b").forEach((cell, index) => {
      const name = view.keyframes[index * view.drafts + draft];
      const painted = view.painting && view.painting[0] === index ? view.painting[draft + 1] : "";
      const picture = name ? cv.media(view.id, name) : painted;
      cell.dataset.state = name ? "done" : painted ? "painting" : "";
      const image = picture ? `url("${picture}")` : "none";
      if (cell.dataset.image === image) return;
      cell.dataset.image = image;
      cell.style.backgroundImage = image;
    });
  });
}

function draftRow(_, draft) {
  const row = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.value = draft;
  const number = document.createElement("span");
  number.textContent = draft + 1;
  const cells = document.createElement("div");
  cells.append(...Array.from({ length: 5 }, () => document.createElement("b")));
  row.append(box, number, cells);
  return row;
}

const chosenDrafts = () => [...drafts.querySelectorAll("input:checked")].map((box) => Number(box.value));

drafts.addEventListener("change", () => drawActs());

// The newest picture of each draft, two by two.
function drawQuad() {
  const last = view ? Math.ceil(view.keyframes.length / view.drafts) - 1 : -1;
  const newest = (draft) => {
    if (view.painting) return view.painting[draft + 1];
    const name = view.keyframes[last * view.drafts + draft];
    return name ? cv.media(view.id, name) : "";
  };
  quad.hidden = !many() || Boolean(view.video) || !newest(0);
  if (quad.hidden) return;
  [...quad.children].forEach((image, draft) => {
    const picture = newest(draft) || "";
    image.hidden = !picture;
    if (picture && image.src !== picture) image.src = picture;
  });
}

// The stage: the newest keyframe until there is a film, then one film per level, exchanged when the next can play.

function drawStage() {
  element.firstElementChild.dataset.state = view ? view.status : "empty";
  drawSample();
  drawQuad();
  if (view && view.video) return playFilm(cv.media(view.id, view.video));
  clearFilm();
  const painted = view && !many() && (view.painting ? view.painting[1] : null);
  const name = view && !many() && view.keyframes[view.keyframes.length - 1];
  const picture = painted || (name ? cv.media(view.id, name) : "");
  still.hidden = !picture;
  if (picture && still.src !== picture) still.src = picture;
}

// Until there is a job, clips made beforehand take turns on the stage.

function drawSample() {
  const wanted = !view && samples.length > 0;
  if (wanted === (example >= 0)) return;
  example = wanted ? 0 : -1;
  sample.hidden = !wanted;
  if (wanted) return showSample();
  sample.removeAttribute("src");
  sample.load();
}

function showSample() {
  sample.src = `${cv.root()}/gallery/${samples[example].file}`;
  if (!cv.calm()) sample.play().catch(() => {});
}

sample.addEventListener("ended", () => {
  if (example < 0) return;
  example = (example + 1) % samples.length;
  showSample();
  drawWords();
});

const toggleSample = () => (sample.paused ? sample.play().catch(() => {}) : sample.pause());
sample.addEventListener("click", toggleSample);
sample.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  toggleSample();
});

function clearFilm() {
  shown = film = null;
  misses = 0;
  head.hidden = true;
  for (const each of films) {
    each.hidden = true;
    each.removeAttribute("src");
    each.load();
  }
}

function playFilm(url) {
  if (shown === url) return;
  const previous = film;
  const next = films[0] === previous ? films[1] : films[0];
  shown = url;
  next.onloadeddata = () => {
    if (shown !== url) return;
    next.onloadeddata = null;
    misses = 0;
    if (previous && Math.abs(previous.duration - next.duration) < 0.2) next.currentTime = previous.currentTime;
    film = next;
    next.hidden = false;
    next.controls = !active();
    head.hidden = false;
    still.hidden = true;
    if (!cv.calm()) next.play().catch(() => {});
    if (previous) {
      previous.hidden = true;
      previous.removeAttribute("src");
      previous.load();
    }
  };
  next.onerror = () => {
    if (shown !== url) return;
    misses++;
    if (misses > PATIENCE) return drawWords();
    setTimeout(() => {
      if (shown !== url) return; // another one has come
      shown = null;
      draw();
    }, 1000 * misses);
  };
  next.src = url;
}

// Cells differ in width, so the way from a moment to a place on the strip leads through the cells' middles.

const middles = () => [...cells.children].map((cell) => cell.offsetLeft + cell.offsetWidth / 2);

function moveHead() {
  requestAnimationFrame(moveHead);
  if (!view || !film || !film.duration) return;
  const places = middles();
  const at = Math.min(1, film.currentTime / film.duration) * (places.length - 1);
  const left = Math.floor(at);
  const right = Math.min(left + 1, places.length - 1);
  head.style.transform = `translateX(${cells.offsetLeft + places[left] + (places[right] - places[left]) * (at - left)}px)`;
  const now = 1 + Math.round(at);
  if (strip.getAttribute("aria-valuenow") !== String(now)) {
    strip.setAttribute("aria-valuenow", now);
    strip.setAttribute("aria-valuetext", cv.say("frame_label", { index: now, count: view.count }));
  }
}

function seek(part) {
  if (!film || !film.duration) return;
  film.pause();
  film.currentTime = Math.min(Math.max(part, 0), 1) * Math.max(0, film.duration - 0.02);
}

function seekTo(x) {
  const places = middles();
  const nearest = places.reduce((best, place, index) => (Math.abs(place - x) < Math.abs(places[best] - x) ? index : best), 0);
  seek(nearest / Math.max(1, places.length - 1));
}

strip.addEventListener("pointerdown", (event) => {
  if (!film) return;
  const box = cells.getBoundingClientRect();
  const follow = (move) => seekTo(move.clientX - box.left);
  strip.setPointerCapture(event.pointerId);
  follow(event);
  strip.addEventListener("pointermove", follow);
  strip.addEventListener("lostpointercapture", () => strip.removeEventListener("pointermove", follow), { once: true });
});

strip.addEventListener("keydown", (event) => {
  if (!film || !view) return;
  const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
  const now = Number(strip.getAttribute("aria-valuenow")) - 1;
  const last = Math.max(1, view.count - 1);
  if (step) seek((now + step) / last);
  else if (event.key === "Home") seek(0);
  else if (event.key === "End") seek(1);
  else return;
  event.preventDefault();
});

// The words: what happens, how far it is, how long it takes.

function whatHappens() {
  if (!view) return cv.say("idle");
  if (lost) return cv.say("lost");
  if (stopping()) return cv.say(`stopping_${stopping()}`);
  if (view.status === "queued") return view.place ? cv.say("queued", { place: view.place }) : cv.say("queued_next");
  if (view.status === "stopped" && !view.video) return cv.say("stopped_empty");
  if (view.status !== "running") return cv.say(view.status);
  if (view.stage === "drafts") {
    return cv.say("stage_drafts", { index: Math.min(5, Math.floor(view.keyframes.length / view.drafts) + 1) });
  }
  if (view.stage === "load" && view.parts && view.parts[1] > 1) {
    return cv.say("loading_part", { done: view.parts[0], total: view.parts[1] });
  }
  if (view.stage === "keyframes" && view.keyframes.length >= 5 && view.rounds > 0) return roundNow();
  if (view.stage === "keyframes") return cv.say("stage_keyframes", { index: Math.min(5, view.keyframes.length + 1) });
  if (view.stage === "interpolate") return roundNow();
  return cv.say(`stage_${view.stage || "load"}`);
}

const roundNow = () =>
  cv.say("stage_interpolate", { round: Math.min(view.rounds, Math.max(0, view.level) + 1), rounds: view.rounds });

// One part of the bar for each stage: super-resolution has most of the tokens, keyframes take most of the time.
function drawBar() {
  const plan = view ? Object.values(view.plan) : [1, 1, 1];
  let before = 0;
  let percent = 0;
  const stages = plan.filter((tokens) => tokens > 0).length;
  [...find(".cv-bar").children].forEach((segment, index) => {
    const tokens = plan[index];
    const part = view && tokens ? Math.min(1, Math.max(0, (view.done - before) / tokens)) : 0;
    segment.hidden = !tokens;
    segment.style.setProperty("--part", part);
    before += tokens;
    percent += tokens ? (100 * part) / stages : 0;
  });
  return Math.floor(percent + 1e-6);
}

// What is said on a stage without a picture.
function emptyWords() {
  if (!view) return example >= 0 ? cv.say("sample") : cv.say("empty");
  if (view.status === "queued") return view.place ? cv.say("queued", { place: view.place }) : cv.say("queued_next");
  if (view.video) return misses > PATIENCE ? cv.say("film_lost") : "";
  return active() ? cv.say("empty") : cv.say("no_picture");
}

function drawWords() {
  cv.fillWords(element);
  stage.setAttribute("aria-label", cv.say("stage_label"));
  strip.setAttribute("aria-label", cv.say("strip_label"));
  const percent = drawBar();
  const what = whatHappens();
  find(".cv-what").textContent = what;
  find(".cv-left").textContent =
    view && view.status === "running" && view.left !== null ? cv.say("left", { time: cv.time(view.left) }) : "";
  find(".cv-tokens").textContent =
    view && view.total ? cv.say("tokens", { done: view.done.toLocaleString(), total: view.total.toLocaleString() }) : "";
  find(".cv-meta").textContent = view ? `${cv.which(view)} · ${cv.size(view)}` : "";
  find(".cv-wish").textContent = view ? view.prompt : example >= 0 ? samples[example].prompt : "";
  find(".cv-empty").textContent = emptyWords();
  const notes = view ? [view.mine ? "" : cv.say("watching"), cv.pick(view.error), ...view.notes.map(cv.pick)] : [];
  find(".cv-note").textContent = notes.filter(Boolean).join(" ");
  find(".cv-note").dataset.kind = view && view.error ? "error" : "";
  if (example >= 0) sample.setAttribute("aria-label", cv.english() ? samples[example].en : samples[example].prompt);
  const bar = find(".cv-bar");
  bar.setAttribute("aria-valuenow", percent);
  bar.setAttribute("aria-label", what);
  const live = find(".cv-live");
  if (live.textContent !== what) live.textContent = what;
  const unseen = view && view.status === "done" && document.hidden;
  const waiting = view && view.status === "queued" && view.place ? `(${view.place}) ` : "";
  document.title = `${waiting || (active() ? `${percent}% · ` : unseen ? "✓ " : "")}${cv.say("title")}`;
}

// What can be done.

function drawActs() {
  const final = view && !active();
  const has = final && view.video;
  const done = final && view.status === "done";
  const failed = final && !done;
  const clip = done && !many(); // a film that can go on
  const visible = {
    vary: example >= 0,
    stop: active() && view.mine,
    stop_level: view && view.status === "running" && view.mine && view.stage !== "superres" && !stopping() && !many(),
    smaller: failed && view.smaller,
    resume: failed && view.level >= 0 && !many(),
    again: failed,
    finish: done && many(),
    share: has,
    download: has,
    gif: has && done,
    zip: has && done,
    finer: clip && view.frames < 33,
    enlarge: clip && !view.superres,
    between: clip && view.frames > 5,
    go_on: clip,
    next: final,
    reuse: view,
    close_share: true,
  };
  for (const node of element.querySelectorAll("[data-act]")) node.hidden = meeting || !visible[node.dataset.act];
  find("[data-act=finish]").disabled = !chosenDrafts().length;
  if (view && view.smaller) find("[data-act=smaller]").textContent = cv.say("smaller", { preset: view.smaller });
  find("[data-act=stop]").disabled = stopping() === "now";
  strip.tabIndex = has ? 0 : -1;
  strip.setAttribute("aria-disabled", String(!has));
  strip.setAttribute("aria-valuemax", view ? Math.max(1, view.count || 5) : 5);
  if (has) {
    find("[data-act=download]").href = `${cv.media(view.id, view.video)}?download`;
    find("[data-act=gif]").href = `${cv.media(view.id, "clip.gif")}?download`;
    find("[data-act=zip]").href = `${cv.media(view.id, "frames.zip")}?download`;
  }
  if (film) film.controls = Boolean(final);
}

async function share() {
  const url = cv.link(view);
  const box = find(".cv-link");
  if (navigator.share && window.matchMedia("(pointer: coarse)").matches) {
    return navigator.share({ title: cv.say("title"), text: view.prompt, url }).catch(() => {});
  }
  box.value = url;
  const code = find(".cv-qr");
  code.src = `${cv.root()}/qr?link=${encodeURIComponent(cv.shortLink(view))}`;
  shareBox.hidden = false;
  drawShare();
  box.focus({ preventScroll: true });
  box.select();
  cv.show(shareBox);
  try {
    await navigator.clipboard.writeText(url);
    find(".cv-said").textContent = cv.say("copied");
  } catch {
    find(".cv-said").textContent = cv.say("copy_by_hand"); // no permission: the link is there, selected
  }
}

function drawShare() {
  shareBox.setAttribute("aria-label", cv.say("share"));
  find(".cv-link").setAttribute("aria-label", cv.say("link"));
  find(".cv-qr").alt = cv.say("qr");
}

function closeShare() {
  if (shareBox.hidden) return;
  shareBox.hidden = true;
  find("[data-act=share]").focus();
}

shareBox.addEventListener("keydown", (event) => event.key === "Escape" && closeShare());

element.addEventListener("click", (event) => {
  const act = event.target.closest("button[data-act]")?.dataset.act;
  if (!act) return;
  if (act === "vary" || act === "reuse") cv.show(document.querySelector("#cv-wish"));
  if (act === "vary") return trigger("vary", { index: example });
  if (act === "close_share") return closeShare();
  if (!view) return;
  const id = view.id;
  if (act === "share") return share();
  if (act === "stop") {
    told = { id, at: performance.now() };
    setTimeout(draw, 4100); // where the stop was not understood, it can be pressed again
    draw();
    return trigger("stop", { id, level: false });
  }
  if (act === "stop_level") return trigger("stop", { id, level: true });
  if (act === "reuse") return trigger("reuse", { id });
  if (act === "go_on") {
    trigger("go_on", { id });
    const prompt = document.querySelector("#cv-prompt textarea");
    return prompt && prompt.focus();
  }
  trigger("again", { id, change: act, drafts: chosenDrafts() });
});

function draw() {
  drawDrafts();
  drawCells();
  drawStage();
  drawWords();
  drawActs();
  drawShare();
}

function hear() {
  const value = props.value;
  const before = view && view.id;
  view = value && value.id ? value : null;
  if (value && value.language) cv.setLanguage(value.language);
  if (view && view.id !== before) {
    window.history.replaceState(null, "", `${window.location.pathname}?job=${encodeURIComponent(view.id)}`);
    shareBox.hidden = true;
    clearFilm();
    if (value.asked) cv.show(element);
  }
  draw();
  watchJob();
}

// While a job is active the server tells what changes. The first message after each connection is whole, so a phone
// that slept, a lost network or a restarted server cost nothing but the wait.

function watchJob() {
  unfollow?.();
  unfollow = null;
  lost = false;
  if (!active()) return;
  unfollow = cv.follow(view.id, {
    news(changes) {
      view = changes.gone ? null : { ...view, ...changes };
      draw();
      if (active()) return;
      watchJob(); // which ends it
      trigger("settled", {});
    },
    lost(yes) {
      if (yes === lost) return;
      lost = yes;
      if (!lost) meetServer();
      drawWords();
    },
  });
}

// A server that was started anew does not know this page and would lose what is pressed: the page is loaded again. (Gradio
// does so as well, but later.) Until that is known there is nothing to press.

async function meetServer() {
  meeting = true;
  const answer = await fetch(`${cv.root()}/gradio_api/app_id`, { cache: "no-store" }).catch(() => null);
  const known = answer?.ok ? (await answer.json()).app_id : null;
  if (known !== null && String(known) !== String(window.gradio_config.app_id)) return window.location.reload();
  meeting = false;
  drawActs();
}

// The job on the stage was deleted on the shelf.
window.addEventListener("cv-deleted", (event) => {
  if (!view || view.id !== event.detail) return;
  view = null;
  window.history.replaceState(null, "", window.location.pathname);
  draw();
  watchJob();
});

watch("value", hear);
window.addEventListener("cv-language", () => draw());
document.addEventListener("visibilitychange", () => document.hidden || drawWords());
hear();
requestAnimationFrame(moveHead);
