// What is said, and what can be pressed. Continues screen.js.

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
