// Accounts on the admin page: a new one, a new personal link, shutting somebody out.
const outcome = document.getElementById("outcome");
let csrfToken = null;

function show(text, link = "") {
  outcome.hidden = false;
  document.getElementById("outcome-text").textContent = text;
  document.getElementById("outcome-link").textContent = link;
}

async function post(path, body) {
  csrfToken ??= (await (await fetch("/api/project")).json()).csrf_token;
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...(csrfToken ? { "X-CSRF-Token": csrfToken } : {}) },
    body: JSON.stringify(body),
  });
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error.message);
  return content;
}

async function act(path, body, said) {
  try {
    const content = await post(path, body);
    show(said(content.name), content.link);
  } catch (problem) {
    show(problem instanceof TypeError ? "The server does not answer. Try again in a moment." : problem.message);
  }
}

const ACTIONS = {
  link: (name) => act("/api/accounts/link", { name }, (known) => `The new personal link of ${known}:`),
  deactivate: (name) => act("/api/accounts/deactivate", { name }, (known) => `${known} can no longer come in. What they said stays.`),
};

for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", () => ACTIONS[button.dataset.action](button.dataset.name));
}
document.getElementById("add-account").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = document.getElementById("account-name").value;
  const role = document.getElementById("account-role").value;
  act("/api/accounts", { name, role }, (known) => `The personal link of ${known}:`);
});
