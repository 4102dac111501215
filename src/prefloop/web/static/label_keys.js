// Keys and buttons. Both end in the same actions: choose, undo, strength, rationale, help.

const part = (id) => document.getElementById(id);
const CHOICES = {
  Digit1: "left", Numpad1: "left", ArrowLeft: "left",
  Digit2: "right", Numpad2: "right", ArrowRight: "right",
  Digit3: "tie", Numpad3: "tie", Digit0: "tie", Numpad0: "tie",
  Digit4: "both_bad", Numpad4: "both_bad",
};
const LETTER_CHOICES = { t: "tie", b: "both_bad", s: "skip" };
const SETTLING_MILLISECONDS = 250;

export function listen(actions) {
  document.addEventListener("keydown", (event) => onKey(event, actions));
  for (const button of document.querySelectorAll("[data-choice]")) {
    button.addEventListener("click", (event) => {
      if (isMeant(event, actions)) actions.choose(button.dataset.choice);
    });
  }
  for (const button of document.querySelectorAll("[data-strength]")) {
    button.addEventListener("click", () => actions.toggleStrength(Number(button.dataset.strength)));
  }
  for (const id of ["undo", "pause-undo"]) {
    part(id).addEventListener("click", (event) => {
      if (event.detail < 2) actions.undo();
    });
  }
  part("to-rationale").addEventListener("click", () => part("rationale").focus());
  part("help-open").addEventListener("click", () => part("help").showModal());
  part("look-again").addEventListener("click", actions.lookAgain);
  part("sign-out").addEventListener("click", actions.signOut);
  part("notice-close").addEventListener("click", actions.closeNotice);
}

/** The second click of a double click, or one that lands before anybody can have read the new pair, is an accident. */
function isMeant(event, actions) {
  if (event.detail === 0) return true; // Enter or Space on the button.
  return event.detail === 1 && actions.millisecondsShown() > SETTLING_MILLISECONDS;
}

function onKey(event, actions) {
  if (event.isComposing || part("help").open) return;
  if (event.target.closest?.("textarea, input, select")) {
    if (event.key === "Escape") part("prompt-title").focus({ preventScroll: true });
    return;
  }
  const action = actionOf(event, actions);
  if (!action) return;
  event.preventDefault();
  // A key that is held down is pressed once.
  if (!event.repeat) action();
}

function actionOf(event, actions) {
  const letter = letterOf(event);
  if (event.altKey) return null;
  if (event.ctrlKey || event.metaKey) return letter === "z" && !event.shiftKey ? actions.undo : null;
  if (event.key === "?") return () => part("help").showModal();
  const code = event.code || (/^[0-9]$/.test(event.key) ? `Digit${event.key}` : event.key);
  const digit = /^(?:Digit|Numpad)([1-4])$/.exec(code);
  if (event.shiftKey && digit) return () => actions.toggleStrength(Number(digit[1]));
  if (letter === "u" || event.key === "Backspace") return actions.undo;
  if (letter === "r") return () => part("rationale").focus();
  const choice = LETTER_CHOICES[letter] ?? (event.shiftKey ? null : CHOICES[code]);
  return choice ? () => actions.choose(choice) : null;
}

/** The Latin letter of a key, by its place where the keyboard writes another script. */
function letterOf(event) {
  const isForeign = event.key.length === 1 && event.key > "\u007F" && event.code.startsWith("Key");
  return isForeign ? event.code.slice(3).toLowerCase() : event.key.toLowerCase();
}
