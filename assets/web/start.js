// The first frame that somebody gave: props.value = {packed, seen, given} (see cogvideo/web/form.py), or nothing.
const cv = window.cv;

function picture(address, word) {
  const figure = document.createElement("figure");
  const image = document.createElement("img");
  image.src = cv.picture(address);
  image.alt = "";
  const caption = document.createElement("figcaption");
  caption.className = "cv-small";
  caption.textContent = cv.say(word);
  figure.append(image, caption);
  return figure;
}

function draw() {
  const value = props.value;
  const box = element.firstElementChild;
  box.className = value ? "cv-begin" : "";
  if (!value) return box.replaceChildren();
  const remove = document.createElement("button");
  remove.type = "button";
  remove.textContent = cv.say("start_remove");
  remove.addEventListener("click", () => {
    props.value = null;
    draw();
  });
  box.replaceChildren();
  if (value.given) box.append(picture(value.given, "start_given"));
  if (value.seen) box.append(picture(value.seen, "start_seen"));
  box.append(remove);
}

watch("value", draw);
window.addEventListener("cv-language", draw);
draw();
