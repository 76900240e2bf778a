// Phrases to press. props.value: groups of [title, phrases], both as [Chinese, English]; a group may have no title.
// One press says "choose": the page puts the phrase into the prompt.
const cv = window.cv;

function chip(phrase) {
  const button = document.createElement("button");
  button.type = "button";
  const text = document.createElement("span");
  text.lang = "zh-CN";
  text.textContent = phrase[0];
  button.append(text);
  if (cv.english()) {
    const gloss = document.createElement("small");
    gloss.textContent = phrase[1];
    button.append(gloss);
  }
  button.addEventListener("click", () => trigger("choose", { text: phrase[0] }));
  return button;
}

function group([title, phrases]) {
  const box = document.createElement("div");
  box.className = "cv-chips";
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", title ? cv.pick(title) : cv.say("chips"));
  box.append(...phrases.map(chip));
  if (!title) return [box];
  const heading = document.createElement("p");
  heading.className = "cv-small";
  heading.textContent = cv.pick(title);
  return [heading, box];
}

const draw = () => element.firstElementChild.replaceChildren(...props.value.flatMap(group));
window.addEventListener("cv-language", draw);
draw();
