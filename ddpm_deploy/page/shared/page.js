// The page: what is asked for in the form is drawn on the stage, and kept in the gallery.
import * as artist from "./artist.js";
import { makeForm } from "./form.js";
import { makeGallery } from "./gallery.js";
import { Stage } from "./stage.js";
import { $ } from "./dom.js";
import { countdown, inWords, retryable } from "./words.js";

const MOST_TRIES = 6;

async function start() {
  $("announced").textContent = artist.announced;
  const model = await opened();
  if (!model) return;
  $("name").textContent = document.title = model.name;
  $("about").textContent = about(model);
  artist.watch(({ text, ready }) => {
    $("status").textContent = text;
    $("status").classList.toggle("ready", ready);
  });
  const form = makeForm(model, artist.live), stage = new Stage(model);
  const gallery = makeGallery(model, artist.copies, form.show);
  form.onDraw((request, signal) => drawn(request, signal, stage, gallery, form));
}

/** The description of the model, or null while a token has to be asked for. */
async function opened() {
  try {
    return await artist.open();
  } catch (error) {
    if (error.status === 401 && artist.takesToken) askForToken(artist.tokenGiven());
    else complain(inWords(error));
    return null;
  }
}

function askForToken(wasWrong) {
  $("token-form").hidden = false;
  $("token").focus();
  if (wasWrong) complain("The service does not know this token.");
  $("token-form").onsubmit = (event) => {
    event.preventDefault();
    artist.setToken($("token").value);
    $("token-form").hidden = true;
    complain("");
    start();
  };
}

/** Draws a request; tries again where the service says when to. */
async function drawn(request, signal, stage, gallery, form) {
  complain("");
  for (let attempt = 1; ; attempt++) {
    try {
      await painted(request, signal, stage, gallery);
      return;
    } catch (error) {
      stage.fail();
      if (signal.aborted) return stage.tell("Stopped.");
      if (!retryable(error) || attempt === MOST_TRIES) return complain(inWords(error));
      stage.tell("");
      try {
        await countdown($("alert"), error, signal);
      } catch {
        return stage.tell("Stopped.");
      } finally {
        complain("");
      }
    }
  }
}

async function painted(request, signal, stage, gallery) {
  const failures = [];
  stage.begin(request);
  for await (const news of artist.draw(request, signal)) {
    if (news.error) failures.push(news.error);
    stage.show(news);
  }
  if (failures.length === request.n) throw failures[0];
  const pictures = stage.end();
  gallery.add(request, pictures, stage.seconds);
  if (failures.length) complain(`${failures.length} of ${request.n} pictures failed. ${inWords(failures[0])}`);
}

function about({ shape: [channels, height, width], labels, prompt }) {
  const colours = { 1: "grey", 3: "colour", 4: "colour" }[channels];
  const by = prompt ? ", from a prompt" : labels ? `, ${labels.classes.length} classes` : "";
  return `A diffusion model of ${width} × ${height} ${colours} pictures${by}`;
}

function complain(text) {
  $("alert").textContent = text;
  $("alert").hidden = !text;
}

start().catch((error) => complain(inWords(error)));
