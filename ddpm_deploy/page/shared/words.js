// Errors as a person reads them.

const NO_ANSWER = "The service does not answer. Is it running, and is this computer online?";
const REASONS = {
  401: "The service does not take this token. Load the page again to give another.",
  413: "This is too much text for the service.",
  429: "Too much is waiting to be drawn.",
  503: "The service is starting or shutting down.",
  504: "It was not drawn in time. Ask for fewer pictures or steps.",
};

export const retryable = ({ status }) => status === 429 || status === 503;

/** What went wrong, in a sentence or two. */
export function inWords(error) {
  if (error.status in REASONS) return REASONS[error.status];
  if (error instanceof TypeError) return NO_ANSWER;
  const text = error.message || "Something went wrong.";
  return text[0].toUpperCase() + text.slice(1);
}

/** Shows when the next try is, and returns then; throws when it is stopped. The seconds are not read out. */
export async function countdown(element, error, signal) {
  const seconds = document.createElement("span");
  seconds.setAttribute("aria-hidden", "true");
  element.replaceChildren(`${inWords(error)} Trying again by itself`, seconds);
  element.hidden = false;
  for (let left = Math.max(1, error.retryAfterS ?? 1); left > 0; left--) {
    seconds.textContent = ` in ${left} s`;
    await aSecond(signal);
  }
}

function aSecond(signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
