// Example sentences: a press puts one into the prompt. props.value: [Chinese, English] each.
const box = element.firstElementChild;
const draw = () => {
  box.setAttribute("aria-label", window.cv.say("chips"));
  box.replaceChildren(
    ...props.value.map(([chinese, english]) => {
      const chip = document.createElement("button");
      chip.type = "button";
      const text = document.createElement("span");
      text.lang = "zh-CN";
      text.textContent = chinese;
      chip.append(text);
      if (window.cv.english()) {
        const gloss = document.createElement("small");
        gloss.textContent = english;
        chip.append(gloss);
      }
      chip.addEventListener("click", () => trigger("choose", { text: chinese }));
      return chip;
    }),
  );
};
window.addEventListener("cv-language", draw);
draw();
