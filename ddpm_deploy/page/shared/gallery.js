// What was drawn in this tab, the newest first, each with what draws it again.
import { $, make, say } from "./dom.js";

const MOST_KEPT = 100;
const CONFIRMED_MS = 1500;

export function makeGallery(model, copies, again) {
  function add(request, pictures, seconds) {
    $("gallery").prepend(entry(request, pictures, seconds));
    const old = $("gallery").children[MOST_KEPT];
    old?.querySelectorAll("img").forEach((image) => URL.revokeObjectURL(image.src));
    old?.remove();
    $("gallery-section").hidden = false;
  }

  function entry(request, pictures, seconds) {
    const name = `${model.name}-${request.seed}`.replace(/[^\w-]+/g, "_");
    const links = pictures.map(({ src, alt }, i) => {
      const link = make("a", { href: src, download: `${name}-${i}.png`, title: "Save" }, make("img", { src, alt }));
      link.setAttribute("aria-label", `Save picture ${i + 1}: ${alt}`);
      return link;
    });
    const buttons = copies.map(([language, write]) =>
      button(`Copy as ${language}`, (event) => copy(write(request, model), language, event.target)),
    );
    return make(
      "li",
      {},
      make("div", { className: "strip" }, ...links),
      make("p", { className: "caption" }, ...facts(request, seconds)),
      make("div", { className: "buttons" }, ...buttons, button("Use again", () => again(request))),
    );
  }

  return { add };
}

function facts({ labels, prompt, guidance, solver, steps, seed }, seconds) {
  const title = [prompt, labels.join(", ")].filter(Boolean).join(" · ") || "Anything";
  const weight = guidance === 1 ? [] : [`guidance ${guidance}`];
  const details = [solver, `${steps} steps`, ...weight, `seed ${seed}`, seconds].join(" · ");
  return [make("strong", { textContent: title }), make("span", { textContent: details })];
}

const button = (textContent, onclick) => make("button", { type: "button", className: "small", textContent, onclick });

async function copy(text, language, pressed) {
  say("");
  try {
    await navigator.clipboard.writeText(text);
    say(`Copied as ${language}.`);
    confirm(pressed, `Copy as ${language}`);
  } catch {
    $("copy-text").value = text; // a page that does not come over HTTPS may not write to the clipboard
    $("copy-dialog").showModal();
    $("copy-text").select();
  }
}

function confirm(pressed, text) {
  pressed.textContent = "Copied";
  setTimeout(() => (pressed.textContent = text), CONFIRMED_MS);
}
