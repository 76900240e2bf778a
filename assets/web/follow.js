// What the server tells of a job while it is active. In: the job's id. Out: calls of `news` with whatever has changed,
// the first time with everything, and of `lost` with whether the server is out of reach.
//
// A page in sight keeps one stream of events open. A hidden one asks now and then instead: browsers allow six
// connections to a host, and ten tabs would leave none for the eleventh.
window.cv.follow = (job, { news, lost }) => {
  const SILENCE = 5000; // milliseconds without a sign of life after which a stream is opened anew
  const PAUSE = 3000; // between two questions of a hidden page
  let source = null;
  let heard = 0;
  let waiting = 0;
  let turn = 0; // grows with every change of the way; answers of earlier ones count no more

  const address = (way) => `${window.cv.root()}/${way}/${encodeURIComponent(job)}`;

  function hear(text) {
    heard = performance.now();
    lost(false);
    if (text) news(JSON.parse(text));
  }

  function listen(mine) {
    source = new EventSource(address("watch"));
    heard = performance.now();
    source.addEventListener("beat", () => mine === turn && hear(""));
    source.onmessage = (event) => mine === turn && hear(event.data);
    source.onerror = () => mine === turn && lost(true);
  }

  async function ask(mine) {
    try {
      const answer = await fetch(address("now"), { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      const text = await answer.text();
      if (mine === turn) hear(text);
    } catch {
      if (mine === turn) lost(true);
    }
    if (mine === turn) waiting = setTimeout(ask, PAUSE, mine);
  }

  function close() {
    turn++;
    clearTimeout(waiting);
    source?.close();
    source = null;
  }

  function begin() {
    close();
    if (document.hidden) ask(turn);
    else listen(turn);
  }

  // The browser connects again by itself, but not after a proxy's error page, and a network that sleeps says nothing.
  function check() {
    if (source && (source.readyState === EventSource.CLOSED || performance.now() - heard > SILENCE)) begin();
  }

  document.addEventListener("visibilitychange", begin);
  window.addEventListener("online", check);
  const checking = setInterval(check, 1500);
  begin();
  return () => {
    close();
    clearInterval(checking);
    document.removeEventListener("visibilitychange", begin);
    window.removeEventListener("online", check);
  };
};
