// Words, addresses and the language of the page; screen.js and shelf.js use them through `window.cv`.
window.cv = (() => {
  const cv = { words: {}, shareBase: "" };

  cv.english = () => document.documentElement.lang === "en";

  // The words of a key in the page's language, {names} filled in. Always used as text, never as HTML.
  cv.say = (key, values = {}) => {
    const pair = cv.words[key] || ["", ""];
    return pair[cv.english() ? 1 : 0].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
  };

  // A job in few words.
  cv.which = (job) => cv.say(job.drafts > 1 ? "which_drafts" : "which", job);
  cv.size = (job) => cv.say(job.drafts > 1 ? "size_drafts" : "size", job);

  cv.pick = (pair) => (pair ? pair[cv.english() ? 1 : 0] : "");

  cv.setLanguage = (language) => {
    document.documentElement.lang = language === "en" ? "en" : "zh-CN";
    document.documentElement.dataset.language = language;
    window.dispatchEvent(new Event("cv-language"));
  };

  // The page's own address without its query: right behind a proxy and below a root path.
  cv.root = () => (window.gradio_config?.root || window.location.origin).replace(/\/$/, "");
  cv.media = (job, name) => `${cv.root()}/media/${encodeURIComponent(job)}/${encodeURIComponent(name)}`;

  cv.time = (seconds) =>
    seconds < 90
      ? cv.say("time_seconds", { count: Math.max(1, Math.round(seconds)) })
      : cv.say("time_minutes", { count: Math.round(seconds / 60) });

  cv.fillWords = (element) => {
    for (const node of element.querySelectorAll("[data-word]")) node.textContent = cv.say(node.dataset.word);
  };

  cv.calm = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches;

  // Brings a part of the page into sight, by as little as it takes. What changes on the way can end a smooth scroll early:
  // then the rest is made up for, unless somebody has begun to scroll or click.
  cv.show = (node) => {
    node.scrollIntoView({ behavior: cv.calm() ? "auto" : "smooth", block: "nearest" });
    if (cv.calm()) return;
    const hands = new AbortController();
    const late = setTimeout(() => {
      hands.abort();
      node.scrollIntoView({ block: "nearest" });
    }, 1500);
    const leave = () => {
      clearTimeout(late);
      hands.abort();
    };
    for (const hand of ["wheel", "touchstart", "pointerdown", "keydown"]) {
      document.addEventListener(hand, leave, { passive: true, signal: hands.signal });
    }
  };

  // A clip without controls is stopped and goes on by a click, Enter or Space.
  cv.playOnPress = (video) => {
    const toggle = () => (video.paused ? video.play().catch(() => {}) : video.pause());
    video.addEventListener("click", toggle);
    video.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      toggle();
    });
  };

  // A link that fills the page in and shows the clip while the server has it. It starts nothing.
  cv.link = (view) => {
    const query = new URLSearchParams({ job: view.id, p: view.prompt, s: view.seed, f: view.frames, d: view.seconds });
    for (const [name, value] of Object.entries(view.extra || {})) query.set(name, value);
    return `${cv.shareBase || cv.root() + "/"}?${query}`;
  };

  // The same for a phone's camera: while the server has the clip its id is enough.
  cv.shortLink = (view) => `${cv.shareBase || cv.root() + "/"}?job=${encodeURIComponent(view.id)}`;

  // An address below the page, or one that needs no server.
  cv.picture = (address) => (address.startsWith("data:") ? address : `${cv.root()}/${address}`);

  return cv;
})();

// Gradio makes each radio button a group of its own, where arrow keys lead nowhere and no screen reader can count.
{
  const group = () => {
    for (const radio of document.querySelectorAll("fieldset[id] input[type=radio]")) {
      const name = radio.closest("fieldset").id;
      if (radio.name !== name) radio.name = name;
    }
  };
  new MutationObserver(group).observe(document, { subtree: true, childList: true, attributeFilter: ["name"] });
}
