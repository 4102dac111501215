// Signs in with name and password. Whoever comes here signed in goes on to the page at once: a browser that followed a
// personal link from another site holds back the new cookie for that one navigation.
const problem = document.getElementById("problem");
const button = document.getElementById("enter");

async function goOnWhenSignedIn() {
  const answer = await fetch("/api/project", { headers: { Accept: "application/json" } });
  if (answer.ok) location.replace("/");
}

async function signIn(event) {
  event.preventDefault();
  const body = { name: document.getElementById("name").value, password: document.getElementById("password").value };
  if (!body.name.trim() || !body.password) {
    problem.textContent = "Give your name and your password.";
    return;
  }
  button.disabled = true;
  problem.textContent = "";
  try {
    const answer = await fetch("/api/sign-in", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    if (answer.ok) {
      location.replace("/");
      return;
    }
    problem.textContent = (await answer.json()).error.message;
  } catch {
    problem.textContent = "The server does not answer. Try again in a moment.";
  }
  button.disabled = false;
}

document.getElementById("sign-in").addEventListener("submit", signIn);
goOnWhenSignedIn().catch(() => {});
