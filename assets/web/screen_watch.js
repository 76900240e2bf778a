// What is pressed, shared and told by the server. Continues screen_words.js; its last lines begin it all.

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
