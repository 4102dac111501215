// The labelling page. A choice goes into the outbox and the next pair is shown at once; the outbox is sent on meanwhile.
import { listen } from "./label_keys.js";
import { Outbox } from "./label_outbox.js";
import { LabelServer, OtherPerson, Refused } from "./label_server.js";
import * as view from "./label_view.js";

const TASKS_HELD = 3;
const FIRST_RETRY_MILLISECONDS = 500;
const LAST_RETRY_MILLISECONDS = 30000;
const RENEWAL_MILLISECONDS = 60000;
const LOOK_AGAIN_MILLISECONDS = 20000;
const NOTICE_MILLISECONDS = 5000;
const REFUSALS = {
  pair_complete: "That pair was completed by others before your answer arrived, so yours was not needed. Go on with the next one.",
  id_reused: "The server already has another answer under the number of this one, and keeps the first. Go on with the next pair.",
  unknown_task: "The server does not know that pair as one of yours any more, so your answer was not kept. Go on with the next pair.",
};

const server = new LabelServer();
let outbox = null;
let queue = [];
let current = null; // { task, submissionId, openedAt, shownAt }
let progress = null;
const refused = new Set(); // Tasks the server took no answer for; it may go on offering them while their lease lasts.
let sending = null; // The promise of the one run of `drain`.
let undoId = null;
let isUndoing = false;
let isLooking = true;
let isOffline = false;
let stopped = null; // "signed-out" or "other-person": nothing is sent any more.
let retries = 0;
let retryTimer = 0;
let noticeShownAt = 0;
let activeAt = Date.now();

// What is shown

function showNext() {
  const task = queue.shift();
  if (task) show(task);
  else {
    current = null;
    pause();
  }
}

function show(task) {
  view.forgetPause();
  current = { task, submissionId: newId(), openedAt: Date.now() / 1000, shownAt: performance.now() };
  view.showTask(task, numDone() + 1);
}

function pause() {
  if (current) return;
  const waiting = numWaiting();
  const canUndo = numDone() > 0 && !stopped;
  if (stopped) view.showPause("Stopped here", "", { canLook: false, canUndo: false });
  else if (isOffline) {
    const kept = waiting ? "Your answers are kept in this browser until then." : "";
    view.showPause("Waiting for the server", `The next pairs come as soon as it answers. ${kept}`, { canLook: true, canUndo: false });
  } else if (isLooking || waiting) view.showPause("One moment", "The next pairs are on their way.", { canLook: false, canUndo: false });
  else if (progress?.num_left > 0) {
    const text = "Other people are answering the pairs that are left. Some may still come to you; this page looks again by itself.";
    view.showPause("Nothing for you right now", text, { canLook: true, canUndo });
  } else {
    const all = numDone() ? "Every answer of yours is stored. " : "";
    view.showPause("All done", `${all}There is no pair left for you. Thank you.`, { canLook: true, canUndo });
  }
}

function showState() {
  const state = stopped ?? (isOffline ? "offline" : numWaiting() || !progress ? "saving" : "saved");
  view.showState(state, numWaiting());
  if (progress) view.showProgress(numDone(), progress.num_left, progress.is_exact);
  pause();
}

function notice(text) {
  noticeShownAt = performance.now();
  view.showNotice(text);
}

function numWaiting() {
  return outbox ? outbox.entries().length : 0;
}

function numDone() {
  return (progress?.num_done ?? 0) + numWaiting();
}

// Labels go out

function choose(choice) {
  activeAt = Date.now();
  if (!current || isUndoing || stopped === "other-person") return;
  const { task, submissionId, openedAt, shownAt } = current;
  const hasSide = choice === "left" || choice === "right";
  outbox.add(task, {
    submission_id: submissionId,
    task_id: task.task_id,
    choice,
    strength: hasSide ? view.strength() : null,
    rationale: view.rationale(),
    opened_at: openedAt,
    // The clock of the machine may be set meanwhile; this one only goes forward.
    submitted_at: openedAt + (performance.now() - shownAt) / 1000,
    client_version: `page ${document.body.dataset.version}`,
  });
  current = null;
  if (performance.now() - noticeShownAt > NOTICE_MILLISECONDS) view.showNotice("");
  showNext();
  showState();
  send();
}

/** Sends what waits, oldest first. True when nothing waits any more. */
function send() {
  clearTimeout(retryTimer);
  sending ??= drain().finally(() => {
    sending = null;
    showState();
  });
  return sending;
}

async function drain() {
  while (!stopped) {
    const waiting = outbox.entries();
    if (!waiting.length) break;
    const [entry] = waiting;
    const asked = numAsked(waiting.length - 1);
    outbox.markTried(entry);
    try {
      const answer = await server.post("/api/labels", { ...entry.submission, num_next: asked });
      outbox.remove(entry);
      take(answer, asked);
    } catch (problem) {
      if (problem instanceof Refused && [409, 413, 422].includes(problem.status)) {
        outbox.remove(entry);
        refused.add(entry.task.task_id);
        notice(REFUSALS[problem.reason] ?? `The server cannot keep that answer: ${problem.message}`);
        await look();
      } else {
        failed(problem);
        return false;
      }
    }
  }
  return !stopped;
}

/** Fetches tasks, which also renews those that are held. */
async function look() {
  isLooking = true;
  pause();
  const asked = numAsked(numWaiting());
  try {
    take(await server.post("/api/next", { num: asked }), asked);
  } catch (problem) {
    failed(problem);
  } finally {
    isLooking = false;
    showState();
  }
}

/** Enough for the tasks to hold besides those that the server counts as held and the page does not show. */
function numAsked(waiting) {
  return Math.min(20, TASKS_HELD + waiting + refused.size);
}

function take(answer, asked) {
  reached();
  progress = answer.progress;
  const known = new Set([...refused, ...outbox.entries().map((entry) => entry.task.task_id)]);
  if (current) known.add(current.task.task_id);
  const offered = answer.tasks.filter((task) => !known.has(task.task_id));
  const ids = new Set(offered.map((task) => task.task_id));
  // What the server does not offer any more was given to somebody else, unless its answer had no more room.
  if (answer.tasks.length < asked) queue = queue.filter((task) => ids.has(task.task_id));
  const held = new Set(queue.map((task) => task.task_id));
  queue.push(...offered.filter((task) => !held.has(task.task_id)));
  if (!current && queue.length) showNext();
  showState();
}

function reached() {
  isOffline = false;
  retries = 0;
}

function failed(problem) {
  if (problem instanceof OtherPerson) stopped = "other-person";
  else if (problem instanceof Refused && problem.status === 401) stopped = "signed-out";
  else {
    if (problem instanceof Refused) notice(problem.message);
    isOffline = true;
    const wait = Math.min(LAST_RETRY_MILLISECONDS, FIRST_RETRY_MILLISECONDS * 2 ** retries++);
    clearTimeout(retryTimer);
    retryTimer = setTimeout(tryAgain, wait * (0.5 + Math.random() / 2));
  }
  showState();
}

async function tryAgain() {
  if (stopped || !outbox) return;
  clearTimeout(retryTimer);
  const isSent = await send();
  if (isSent && (isOffline || queue.length + Number(current !== null) < TASKS_HELD)) await look();
}

// Labels come back

async function undo() {
  activeAt = Date.now();
  if (isUndoing || stopped || !outbox) return;
  isUndoing = true;
  document.body.classList.add("busy");
  try {
    const last = outbox.entries().at(-1);
    if (last && !last.tried) {
      outbox.remove(last);
      reopen(last.task, last.submission);
    } else if (await send()) {
      // The same number until it is answered: an undo that arrived twice takes back one label.
      undoId ??= newId();
      const answer = await server.post("/api/undo", { submission_id: undoId });
      undoId = null;
      reached();
      progress = answer.progress;
      reopen(answer.task, answer.previous);
    } else if (!stopped) notice("Your last choice may already be with the server, which does not answer now. Take it back when the connection is there again.");
  } catch (problem) {
    if (problem instanceof Refused && problem.status === 409) {
      undoId = null;
      notice("There is no choice of yours to take back.");
    } else {
      failed(problem);
      if (!stopped) notice("The server does not answer now. Press undo again when the connection is there.");
    }
  } finally {
    isUndoing = false;
    document.body.classList.remove("busy");
    showState();
  }
}

function reopen(task, previous) {
  refused.delete(task.task_id);
  queue = queue.filter((one) => one.task_id !== task.task_id);
  if (current && current.task.task_id !== task.task_id) queue.unshift(current.task);
  show(task);
  view.showPrevious(previous);
}

// Around it

async function signOut() {
  if (!(await send())) {
    if (!stopped) notice("Signing out needs the server, which does not answer now.");
    return;
  }
  try {
    await server.post("/api/sign-out", {});
    location.replace("/sign-in");
  } catch (problem) {
    failed(problem);
  }
}

/** A random UUID; `crypto.randomUUID` exists on https and loopback only. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function watch() {
  addEventListener("online", tryAgain);
  addEventListener("storage", showState);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    // The person may have signed in again in another tab.
    const wasSignedOut = stopped === "signed-out";
    if (wasSignedOut) {
      stopped = null;
      showState();
    }
    if (wasSignedOut || isOffline || numWaiting()) tryAgain();
  });
  for (const kind of ["pointerdown", "keydown", "wheel", "touchmove"]) {
    addEventListener(kind, () => (activeAt = Date.now()), { passive: true });
  }
  addEventListener("beforeunload", (event) => {
    if (!outbox.isKept()) event.preventDefault();
  });
  setInterval(() => {
    const isActive = !document.hidden && Date.now() - activeAt < RENEWAL_MILLISECONDS;
    if (current && isActive && !stopped && !isOffline) look();
  }, RENEWAL_MILLISECONDS);
  setInterval(() => {
    if (!current && !stopped && !isOffline && !isLooking && !document.hidden) look();
  }, LOOK_AGAIN_MILLISECONDS);
}

function foldGuidelines() {
  const guidelines = document.getElementById("guidelines");
  if (guidelines && matchMedia("(max-width: 70rem)").matches) guidelines.open = false;
}

async function start() {
  foldGuidelines();
  view.showState("saving", 0);
  try {
    const project = await server.start();
    outbox = new Outbox(project.project_id, project.annotator);
  } catch (problem) {
    if (problem instanceof Refused && problem.status === 401) location.replace("/sign-in");
    view.showState("offline", 0);
    setTimeout(start, LAST_RETRY_MILLISECONDS / 10);
    return;
  }
  listen({
    choose, undo, signOut,
    lookAgain: () => tryAgain(),
    closeNotice: () => view.showNotice(""),
    toggleStrength: (value) => view.setStrength(view.strength() === value ? null : value),
    millisecondsShown: () => (current ? performance.now() - current.shownAt : 0),
  });
  watch();
  if (numWaiting()) await send();
  if (!current && !stopped && !isOffline) await look();
  showState();
}

start();
