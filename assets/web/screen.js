// The screen: a view of one job (props.value, made by app.py) shown in place, so that nothing jumps or flickers.
// Here what it shows, its strip and its drafts; screen_film.js, screen_words.js and screen_watch.js go on in the same scope.
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
