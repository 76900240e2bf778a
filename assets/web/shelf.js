// Two shelves of cards: clips made beforehand, and this browser's own jobs (props.value, made by app.py).
const cv = window.cv;
let asked = null; // the job whose deletion waits for a second press
let deleting = null; // the job whose deletion the server was asked for

const make = (name, className, text) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

const button = (word, act, id) => {
  const node = make("button", "", cv.say(word));
  node.type = "button";
  Object.assign(node.dataset, { act, id });
  return node;
};

const active = (job) => job.status === "queued" || job.status === "running";

function historyCard(job) {
  const card = make("li", "cv-card");
  const open = make("button", "cv-picture");
  open.type = "button";
  Object.assign(open.dataset, { act: "open", id: job.id });
  open.setAttribute("aria-label", `${cv.say("open")}: ${job.prompt}`);
  const picture = job.poster || job.keyframes[0];
  const said = cv.say(active(job) ? "active" : `was_${job.status}`);
  if (picture) open.style.backgroundImage = `url("${cv.media(job.id, picture)}")`;
  else open.textContent = said;
  const text = make("p", "cv-wish", job.prompt);
  text.lang = "zh-CN";
  const state = make("p", "cv-small", `${said} · ${cv.size(job).replaceAll(" ", "\u00a0")}\n${cv.which(job)}`);
  const row = make("div", "cv-row");
  row.append(button("reuse_short", "reuse", job.id));
  if (job.status !== "running") row.append(button(asked === job.id ? "delete_sure" : "delete", "delete", job.id));
  card.append(open, text, state, row);
  return card;
}

function galleryCard(clip, index) {
  const card = make("li", "cv-card");
  const video = make("video", "cv-picture");
  Object.assign(video, { muted: true, loop: true, playsInline: true, preload: "metadata", src: `${cv.root()}/gallery/${clip.file}` });
  video.tabIndex = 0;
  video.setAttribute("aria-label", cv.english() ? clip.en : clip.prompt);
  cv.playOnPress(video);
  if (!cv.calm()) visible.observe(video);
  const text = make("p", "cv-wish", clip.prompt);
  text.lang = "zh-CN";
  const row = make("div", "cv-row");
  const vary = button("variation", "vary", "");
  vary.dataset.index = index;
  row.append(vary);
  card.append(video, text);
  if (cv.english()) card.append(make("p", "cv-small", clip.en));
  card.append(row);
  return card;
}

// Clips play while they are in sight.
const visible = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) isIntersecting ? target.play().catch(() => {}) : target.pause();
});

// A job that is not on the stage ends without a word: while there is one, the shelf asks now and then.
setInterval(() => {
  if (!document.hidden && (props.value || []).some(active)) trigger("refresh", {});
}, 4000);

let drawn = "";
let labelled = ""; // the gallery's button in the language it was last drawn in

function draw() {
  cv.fillWords(element);
  const gallery = props.gallery || [];
  const history = props.value || [];
  tellDeleted(history);
  const label = cv.say("variation"); // empty until the page's words have arrived
  const signature = label + JSON.stringify(history) + asked;
  if (signature === drawn) return;
  if (label !== labelled) element.querySelector("[data-shelf=gallery] ul").replaceChildren(...gallery.map(galleryCard));
  drawn = signature;
  labelled = label;
  element.querySelector("[data-shelf=gallery]").hidden = !gallery.length;
  element.querySelector("[data-shelf=history] ul").replaceChildren(...history.map(historyCard));
  element.querySelector(".cv-none").hidden = history.length > 0;
}

// Whoever shows a job that has left the shelf hears of it.
let before = [];
function tellDeleted(history) {
  const there = new Set(history.map((job) => job.id));
  if (deleting && !there.has(deleting) && before.includes(deleting)) {
    window.dispatchEvent(new CustomEvent("cv-deleted", { detail: deleting }));
    deleting = null;
  }
  before = [...there];
}

element.addEventListener("click", (event) => {
  const pressed = event.target.closest("button[data-act]");
  if (!pressed) return;
  const { act, id, index } = pressed.dataset;
  if (act !== "delete") cv.show(document.querySelector(act === "open" ? "#cv-screen" : "#cv-wish"));
  if (act === "vary") return trigger("vary", { index: Number(index) });
  if (act === "delete" && asked !== id) {
    asked = id;
    draw();
    element.querySelector(`button[data-act=delete][data-id="${CSS.escape(id)}"]`).focus();
    return;
  }
  asked = null;
  if (act === "delete") deleting = id;
  trigger({ open: "open", reuse: "reuse", delete: "remove" }[act], { id });
});

watch("value", draw);
window.addEventListener("cv-language", draw);
draw();
