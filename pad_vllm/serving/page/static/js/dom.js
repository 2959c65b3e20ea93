/**
 * Elements from values. Text always goes in as a text node, so what a model or a server said is never read as
 * markup; no other module makes elements in another way.
 */

/**
 * @param {string} tag name of the element
 * @param {Object<string, any>} [attributes] `on` is a map of event listeners; true sets an empty attribute,
 *   false, null and undefined leave it out
 * @param {...(Node|string|null)} children strings become text nodes; null is left out
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (value !== false && value !== null && value !== undefined) {
      made.setAttribute(name, value === true ? "" : String(value));
    }
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** The heading of a panel. */
export function leadTitle(text) {
  return element("h2", { class: "lead-title" }, text);
}

/** The element with this id, which index.html has. */
export function byId(id) {
  return document.getElementById(id);
}

/** Show a message in an element that is hidden while there is none. */
export function say(where, message) {
  where.textContent = message ?? "";
  where.hidden = !message;
}

/**
 * A row of buttons of which one is chosen, as a radio group: arrow keys move the choice.
 *
 * @param {HTMLElement} row with role radiogroup
 * @param {{value: string, label: string}[]} options
 * @param {string} chosen value of one of them
 * @param {(value: string) => void} onChoose called when the user chooses another
 */
export function fillChoiceRow(row, options, chosen, onChoose) {
  const buttons = options.map(({ value, label }) =>
    element(
      "button",
      {
        type: "button",
        role: "radio",
        "aria-checked": String(value === chosen),
        tabindex: value === chosen ? "0" : "-1",
        "data-value": value,
        on: { click: () => choose(value) },
      },
      label,
    ),
  );
  const choose = (value) => {
    for (const button of buttons) {
      const isChosen = button.dataset.value === value;
      button.setAttribute("aria-checked", String(isChosen));
      button.tabIndex = isChosen ? 0 : -1;
    }
    onChoose(value);
  };
  moveByArrowKeys(row, buttons, (button) => choose(button.dataset.value));
  row.replaceChildren(...buttons);
}

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/**
 * Let arrow keys, Home and End move the focus within a group of buttons.
 *
 * @param {HTMLElement} group around them
 * @param {HTMLElement[]} buttons
 * @param {(button: HTMLElement) => void} onMove called with the button that is reached
 */
export function moveByArrowKeys(group, buttons, onMove) {
  group.onkeydown = (event) => {
    const at = buttons.indexOf(document.activeElement);
    let to = -1;
    if (event.key in STEPS) to = (at + STEPS[event.key] + buttons.length) % buttons.length;
    if (event.key === "Home") to = 0;
    if (event.key === "End") to = buttons.length - 1;
    if (at < 0 || to < 0) return;
    event.preventDefault();
    buttons[to].focus();
    onMove(buttons[to]);
  };
}
