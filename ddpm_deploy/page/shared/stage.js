// The pictures of the present request, on their way and when they are done.
import { $, make } from "./dom.js";

const inSeconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`);
const pictures = (n) => (n === 1 ? "1 picture" : `${n} pictures`);

const SHOWN_EMPTY = 4; // before anything was drawn

export class Stage {
  constructor({ shape: [, height, width] }) {
    this.ratio = `${width} / ${height}`;
    this.tiles = [];
    $("tiles").replaceChildren(...Array.from({ length: SHOWN_EMPTY }, () => make("li", { ariaHidden: "true" }, this.frame())));
  }

  /** Empty tiles for a request. */
  begin({ n, solver, labels, prompt }) {
    this.started = performance.now();
    this.first = this.seconds = null;
    this.n = n;
    this.named = (index) => prompt || (labels.length ? labels[index % labels.length] : `picture ${index + 1}`);
    this.tiles = Array.from({ length: n }, (_, index) => this.tile(index));
    $("tiles").replaceChildren(...this.tiles.map(({ item }) => item));
    $("tiles").classList.toggle("one", n === 1);
    $("stage").setAttribute("aria-busy", "true");
    this.tell(`Drawing ${pictures(n)} …`);
    $("stage").scrollIntoView({ block: "nearest" }); // on a phone it is below the form
  }

  tile(index) {
    const image = make("img", { alt: "", hidden: true });
    const bar = make("progress", { max: 1, value: 0 });
    bar.setAttribute("aria-label", `Picture ${index + 1}`);
    return { item: make("li", {}, this.frame(image), bar), image, bar };
  }

  frame(...inside) {
    const frame = make("div", { className: "frame" }, ...inside);
    frame.style.aspectRatio = this.ratio;
    return frame;
  }

  /** What the artist tells: a place in the queue, a picture that begins, a preview, or a picture that is done or failed. */
  show({ index, step, steps, src, ahead, begins, error }) {
    if (ahead !== undefined) return this.tell(ahead ? `Waiting: ${pictures(ahead)} before this …` : "Next in line …");
    const { item, image, bar } = this.tiles[index];
    if (begins) return bar.removeAttribute("value");
    if (error) return (image.hidden = bar.hidden = true);
    this.first ??= performance.now() - this.started;
    image.src = src;
    image.hidden = false;
    if (step !== undefined) {
      bar.value = step / steps;
      image.alt = `${this.named(index)}, unfinished`;
      return this.tell(`Drawing ${pictures(this.n)} …`);
    }
    image.alt = this.named(index);
    bar.hidden = true;
    item.classList.add("done");
  }

  /** All are done, or failed: the sources of the former, with the names that they have for those who do not see them. */
  end() {
    const ms = performance.now() - this.started;
    this.seconds = inSeconds(ms);
    const first = ms - this.first > 1 ? `, first sight after ${inSeconds(this.first)}` : "";
    const done = this.tiles.filter(({ item }) => item.classList.contains("done"));
    this.over(`${pictures(done.length)} in ${this.seconds}${first}.`);
    return done.map(({ image }) => ({ src: image.src, alt: image.alt }));
  }

  fail() {
    this.tiles.forEach(({ bar }) => (bar.hidden = true));
    this.over("");
  }

  over(text) {
    $("stage").removeAttribute("aria-busy");
    this.tell(text);
  }

  tell(text) {
    if ($("progress").textContent !== text) $("progress").textContent = text;
  }
}
