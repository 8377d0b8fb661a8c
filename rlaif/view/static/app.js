// What the page does beside htmx: it says when the server is out of reach, and hears keys.
"use strict";
(function () {
  const trouble = document.getElementById("trouble");

  function tell(text) {
    trouble.textContent = text;
    trouble.hidden = !text;
  }

  document.body.addEventListener("htmx:sendError", () =>
    tell("The server does not answer. What you did last was not saved: start `rlaif view` again, then repeat it."));
  document.body.addEventListener("htmx:responseError", (event) => {
    const said = new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html");
    const text = said.querySelector("main .text") || said.body;
    tell("Not done: " + text.textContent.trim().slice(0, 500));
  });
  document.body.addEventListener("htmx:afterOnLoad", () => tell(""));

  // A letter presses the button, or enters the field, that names it.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const at = document.activeElement;
    const writing = at && (at.tagName === "TEXTAREA" || at.tagName === "INPUT" || at.tagName === "SELECT");
    if (writing) {
      if (event.key === "Escape") at.blur();
      return;
    }
    const meant = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
    if (!meant || meant.disabled) return;
    event.preventDefault();
    if (meant.tagName === "BUTTON") meant.click();
    else meant.focus();
  });

  document.addEventListener("change", (event) => {
    if (event.target.classList.contains("resubmit")) event.target.form.submit();
  });
})();
