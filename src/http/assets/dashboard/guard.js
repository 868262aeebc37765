// Says so when the page cannot start: an old browser, or an answer that is not a script. It must run in old browsers.
(function () {
  var WAIT_MS = 10000;

  function show(text) {
    var place = document.getElementById("boot");
    if (place) place.textContent = text;
  }

  if (!("noModule" in document.createElement("script")) || !window.fetch || !window.ReadableStream) {
    show("This browser is too old for the dashboard. Use a browser of 2023 or later.");
    return;
  }
  window.addEventListener(
    "error",
    function (event) {
      var name = event.target && event.target.src;
      if (name) show("The dashboard cannot start, because a file did not load: " + name + ". Reload the page.");
      else
        show(
          "The dashboard cannot start: " + event.message + ". The browser may be too old; use one of 2023 or later.",
        );
    },
    true,
  );
  setTimeout(function () {
    show("The dashboard has not started within " + WAIT_MS / 1000 + " s. Reload the page, or use a newer browser.");
  }, WAIT_MS);
})();
