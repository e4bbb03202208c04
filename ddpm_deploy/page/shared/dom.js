// A few words for the document.

export const $ = (id) => document.getElementById(id);

/** A new element with its properties and children. */
export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** Tell those who listen to the page. */
export const say = (text) => ($("said").textContent = text);

/** Whether a request takes the model's default plan, which may be more than its solver and steps. */
export const isDefault = ({ solver, steps }, model) =>
  solver === model.default.solver && steps === model.default.steps;
