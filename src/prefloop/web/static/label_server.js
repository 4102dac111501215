// The server as the page sees it: one request after the other, so that every answer takes account of all earlier ones.

const PATIENCE_MILLISECONDS = 15000;

/** No answer, or none that decides anything: to be tried again. */
export class Unreachable extends Error {}

/** The server has decided against the request; trying again changes nothing. */
export class Refused extends Error {
  constructor(status, reason, message) {
    super(message);
    this.status = status;
    this.reason = reason;
  }
}

/** The browser is signed in as somebody else by now. */
export class OtherPerson extends Error {}

export class LabelServer {
  constructor() {
    this.project = null;
    this.last = Promise.resolve();
  }

  /** Whose page this is; to be called first. */
  async start() {
    this.project = await this.#inTurn(() => request("GET", "/api/project"));
    return this.project;
  }

  post(path, body) {
    return this.#inTurn(() => this.#post(path, body));
  }

  async #post(path, body) {
    try {
      return await request("POST", path, body, this.project.csrf_token);
    } catch (problem) {
      if (problem.reason !== "csrf") throw problem;
    }
    // A new session has a new token. It may be another person's, whose name must not stand under these labels.
    const now = await request("GET", "/api/project");
    if (now.annotator !== this.project.annotator || now.project_id !== this.project.project_id) throw new OtherPerson();
    this.project = now;
    return request("POST", path, body, now.csrf_token);
  }

  #inTurn(work) {
    const result = this.last.then(work, work);
    this.last = result.catch(() => {});
    return result;
  }
}

async function request(method, path, body, csrfToken) {
  const headers = { Accept: "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  if (csrfToken) headers["X-CSRF-Token"] = csrfToken;
  const patience = new AbortController();
  const timer = setTimeout(() => patience.abort(), PATIENCE_MILLISECONDS);
  let status, content;
  try {
    const answer = await fetch(path, {
      method, headers, body: body && JSON.stringify(body), signal: patience.signal, redirect: "error",
    });
    status = answer.status;
    content = await answer.json();
  } catch {
    throw new Unreachable();
  } finally {
    clearTimeout(timer);
  }
  if (status === 200) return content;
  if (status === 408 || status === 429 || status >= 500 || !content?.error) throw new Unreachable();
  throw new Refused(status, content.error.reason, content.error.message);
}
