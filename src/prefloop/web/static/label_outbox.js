// Labels on their way. An entry stays in the browser's storage, under a key of its own, until the server has said that
// the label is stored: closing the page, a cut line or a second tab lose nothing.

export class Outbox {
  constructor(projectId, annotator) {
    this.prefix = `prefloop-label/${projectId}/${annotator}/`;
    // Where the browser keeps nothing for us (private windows, a full disk), entries live as long as the page.
    this.unkept = new Map();
  }

  /** Entries `{sequence, tried, task, submission}`, oldest first. */
  entries() {
    const found = new Map(this.unkept);
    try {
      for (const key of Object.keys(localStorage)) {
        if (!key.startsWith(this.prefix)) continue;
        const entry = readEntry(localStorage.getItem(key));
        if (entry) found.set(key, entry);
      }
    } catch {
      // Storage is forbidden: `unkept` has all there is.
    }
    return [...found.values()].sort((one, other) => one.sequence - other.sequence);
  }

  add(task, submission) {
    const last = this.entries().at(-1);
    const sequence = Math.max(Date.now(), last ? last.sequence + 1 : 0);
    this.#write({ sequence, tried: false, task, submission });
  }

  /** Notes, before the first byte leaves, that the server may know the label. */
  markTried(entry) {
    this.#write({ ...entry, tried: true });
  }

  remove(entry) {
    const key = this.prefix + entry.submission.submission_id;
    this.unkept.delete(key);
    try {
      localStorage.removeItem(key);
    } catch {
      // It was never in there.
    }
  }

  isKept() {
    return this.unkept.size === 0;
  }

  #write(entry) {
    const key = this.prefix + entry.submission.submission_id;
    try {
      localStorage.setItem(key, JSON.stringify(entry));
      this.unkept.delete(key);
    } catch {
      this.unkept.set(key, entry);
    }
  }
}

function readEntry(text) {
  try {
    const entry = JSON.parse(text);
    return entry?.submission?.submission_id && entry.task?.task_id ? entry : null;
  } catch {
    return null;
  }
}
