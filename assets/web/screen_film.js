// What plays: the stage and its films, and how the strip moves them. Continues screen.js.

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

cv.playOnPress(sample);

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
