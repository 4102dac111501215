// What the page shows. Everything that models or people wrote becomes text nodes, and never markup.

const part = (id) => document.getElementById(id);
const ROLES = { system: "System", user: "User", assistant: "Assistant" };
let sayingState = 0;
const LETTERS = { left: "A", right: "B" };

export function showTask(task, number) {
  part("pause").hidden = true;
  part("work").hidden = false;
  part("actions").hidden = false;
  part("prompt-number").textContent = `#${number}`;
  part("prompt").replaceChildren(...turns(task.prompt));
  part("prompt").scrollTop = 0;
  for (const side of ["left", "right"]) {
    const text = part(`${side}-text`);
    text.textContent = task[side].text;
    text.scrollTop = 0;
    part(`${side}-cut`).hidden = task[side].ended;
    part(side).classList.remove("was-chosen");
  }
  setStrength(null);
  part("rationale").value = "";
  part("prompt-title").focus({ preventScroll: true });
  scrollTo(0, 0);
}

/** What had been said about a task that was taken back. */
export function showPrevious(previous) {
  if (previous.choice in LETTERS) part(previous.choice).classList.add("was-chosen");
  setStrength(previous.strength ?? null);
  part("rationale").value = previous.rationale ?? "";
}

function turns(messages) {
  const alone = messages.length === 1 && messages[0].role === "user";
  return messages.map((message) => {
    const turn = document.createElement("div");
    turn.className = "turn";
    if (!alone) {
      const role = document.createElement("span");
      role.className = "role";
      role.textContent = ROLES[message.role] ?? message.role;
      turn.append(role);
    }
    const text = document.createElement("div");
    text.className = "text";
    text.dir = "auto";
    text.textContent = message.content;
    turn.append(text);
    return turn;
  });
}

export function showPause(title, text, { canLook, canUndo }) {
  part("work").hidden = true;
  part("actions").hidden = true;
  part("pause").hidden = false;
  part("pause-text").textContent = text;
  part("look-again").hidden = !canLook;
  part("pause-undo").hidden = !canUndo;
  if (part("pause-title").textContent === title) return;
  part("pause-title").textContent = title;
  part("pause-title").focus({ preventScroll: true });
}

export function forgetPause() {
  part("pause-title").textContent = "";
}

export function showProgress(done, left, isExact) {
  const bar = part("progress-bar");
  bar.max = Math.max(1, done + left);
  bar.value = done;
  part("progress-text").textContent = left === 0 || (isExact && left < 10) ? `${done} done, ${left} left` : `${done} done, about ${rounded(left)} left`;
}

/** What is far is not known exactly: others are at work too. */
function rounded(left) {
  const step = left < 100 ? 5 : left < 1000 ? 10 : 100;
  return Math.ceil(left / step) * step;
}

/** Whether all labels are stored: `state` is saved, saving, offline, signed-out or other-person. */
export function showState(state, numWaiting) {
  const waiting = `${numWaiting} waiting`;
  const text = {
    saved: "Saved",
    saving: numWaiting ? `Saving, ${waiting}` : "Loading…",
    offline: numWaiting ? `Offline, ${waiting}` : "Offline",
    "signed-out": numWaiting ? `Signed out, ${waiting}` : "Signed out",
    "other-person": numWaiting ? `Stopped, ${waiting}` : "Stopped",
  }[state];
  part("state").dataset.state = state;
  part("state-text").textContent = text;
  // A screen reader hears what lasts, and not the blink of a label that is stored at once.
  clearTimeout(sayingState);
  sayingState = setTimeout(() => {
    if (part("state-said").textContent !== text) part("state-said").textContent = text;
  }, 1000);
  const stopped = state === "signed-out" || state === "other-person";
  part("signed-out").hidden = !stopped;
  if (!stopped) return;
  const kept = numWaiting === 1 ? "One label is" : `${numWaiting || "No"} labels are`;
  const why = state === "signed-out" ? "You are signed out." : "Somebody else has signed in with this browser.";
  part("signed-out-text").textContent = `${why} ${kept} kept in this browser and sent when you are back. Open your personal link, or:`;
}

export function showNotice(text) {
  part("notice").hidden = !text;
  part("notice-text").textContent = text;
}

export function strength() {
  const pressed = document.querySelector('[data-strength][aria-pressed="true"]');
  return pressed ? Number(pressed.dataset.strength) : null;
}

export function setStrength(value) {
  for (const button of document.querySelectorAll("[data-strength]")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.strength) === value));
  }
}

/** The rationale as the server takes it: no NUL, no half of a surrogate pair. */
export function rationale() {
  const text = part("rationale").value.trim().replaceAll("\0", "");
  return text.replace(/[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/g, "\uFFFD");
}
